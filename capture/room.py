"""Whether this machine's memory holds a batch, before any of it is made."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

import torch
from torch import Tensor, nn

# Candidate, its gradient, and the two moments of the optimiser; or what a client reads, normalises and resizes.
_BATCHES = 4
_FLOAT_BYTES = 4
_LIMIT = Path("/sys/fs/cgroup/memory.max")


def missing_room(model: nn.Module, image_shape: tuple[int, ...], image_count: int, at_once: int) -> str:
    """How much more than the memory a batch takes, as the middle of a sentence; empty where it may fit.

    What is counted is less than what is held: where this is beyond the memory, the batch is.

    Args:
        model: That is given the images; nothing is computed.
        image_shape: Channels, height and width of each image.
        image_count: Images that are held.
        at_once: Of which the model is given so many at once, and its gradient taken.
    """
    batches = _BATCHES * _FLOAT_BYTES * image_count * math.prod(image_shape)
    needed, memory = max(batches, activation_bytes(model, image_shape, at_once)), machine_bytes()
    if needed <= memory:
        return ""
    return f"takes at least {needed / 1e9:,.1f} GB at once, and this machine has {memory / 1e9:,.1f} GB"


def activation_bytes(model: nn.Module, image_shape: tuple[int, ...], at_once: int) -> int:
    """What the model's layers give for images, all of which a gradient needs; 0 where nobody can tell.

    Counted on tensors without content, so that nothing of it is made.

    Args:
        model: In the mode in which it stays.
        image_shape: Channels, height and width of each image.
        at_once: How many the model is given.
    """
    count = 0

    def add(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        nonlocal count
        # A layer that works in place, or does nothing, makes no second tensor.
        if isinstance(output, Tensor) and not any(output is one for one in inputs):
            count += output.numel() * output.element_size()

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(add) for leaf in leaves]
    state = {name: tensor.to("meta") for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    batch = torch.empty(at_once, *image_shape, device="meta")
    try:
        # A model of somebody's own may do what only works on numbers; then it is found out by doing it.
        with contextlib.suppress(Exception), torch.no_grad():
            torch.func.functional_call(model, state, (batch,))
    finally:
        for hook in hooks:
            hook.remove()
    return count


def machine_bytes() -> int:
    """The memory of this machine, or of the part of it that this process may use."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):
        found = min(found, int(_LIMIT.read_text()))  # "max" where there is none
    return found

"""Whether this machine's memory holds what an update claims, before any of it is made.

Where a model pools its features, its tensors fit images of any size and number, and a small update may claim thousands.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from ..capture import CapturedUpdate, UpdateError
from .second_derivative import client_batch

# Candidate, its gradient, and the two moments of the optimiser.
_BATCHES = 4
_FLOAT_BYTES = 4
_LIMIT = Path("/sys/fs/cgroup/memory.max")


def require_room(update: CapturedUpdate, model: nn.Module) -> None:
    """Return quietly where the least that an attack holds at once fits the memory.

    Raises:
        UpdateError: It does not; the sentence tells what was claimed, and what that takes.
    """
    images = _FLOAT_BYTES * update.image_count * math.prod(update.image_shape)
    needed, memory = max(_BATCHES * images, activation_bytes(update, model)), machine_bytes()
    if needed > memory:
        channels, height, width = update.image_shape
        raise UpdateError(
            f"the update claims {update.image_count:,} images of {channels} x {height} x {width}: to attack them takes "
            f"at least {needed / 1e9:,.1f} GB at once, and this machine has {memory / 1e9:,.1f} GB; capture the update "
            "again where the claim is wrong (the model takes images of other sizes too), or take a larger machine"
        )


def activation_bytes(update: CapturedUpdate, model: nn.Module) -> int:
    """What the model's layers give for the client's batch, all of which a gradient needs; 0 where nobody can tell.

    Counted on tensors without content, so that nothing of it is made.
    """
    count = 0

    def add(_: nn.Module, __: object, output: object) -> None:
        nonlocal count
        if isinstance(output, Tensor):
            count += output.numel() * output.element_size()

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(add) for leaf in leaves]
    state = {name: tensor.to("meta") for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    batch = torch.empty(client_batch(update), *update.image_shape, device="meta")
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

"""What a run needs of a machine's memory, for whoever was told that there was not enough."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..capture import CapturedUpdate
from ..coordinator import AttackConfig
from .failures import MemoryLostError

# Python with torch and Ray, before any image: what a process of an agent or of the coordinator holds at least.
_PROCESS_BYTES = 400 * 2**20
# Weights, the update's gradient, the gradient of the candidates, and what its derivative is made of.
_COPIES_OF_WEIGHTS = 4
# Candidate, its gradient, two moments, the consensus, and what is being saved.
_COPIES_OF_BATCH = 6


def least_bytes(update: CapturedUpdate, model: nn.Module) -> int:
    """What one agent holds at least: its process, the weights and the batch; activations come to it."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    batch = 4 * update.image_count * math.prod(update.image_shape)
    return _PROCESS_BYTES + _COPIES_OF_WEIGHTS * weights + _COPIES_OF_BATCH * batch


@contextmanager
def told_what_to_lower(update: CapturedUpdate, model: nn.Module, config: AttackConfig) -> Iterator[None]:
    """Where memory ran out meanwhile, say what the run needs, and which key makes that less."""
    try:
        yield
    except MemoryLostError as error:
        count, megabytes = config.agents.count, least_bytes(update, model) / 2**20
        height, width = update.image_shape[-2:]
        at_once = config.agents.images_at_once or f"all {update.image_count}"
        raise MemoryLostError(
            f"{error} Each of the {count} agents needs {megabytes:,.0f} MB, and the activations of its "
            f"{update.image_count} images of {height} x {width} px in the model; the coordinator needs as much. Lower "
            f"agents.count (now {count}) or agents.images_at_once (now {at_once}), end other programs, or take a "
            "machine with more memory."
        ) from None

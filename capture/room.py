"""Whether this machine's memory holds a batch, before any of it is made."""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .stateless import call_with

# Candidate, its gradient, and the two moments of the optimiser; or what a client reads, normalises and resizes.
_BATCHES = 4
_FLOAT_BYTES = 4
_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Shortage:
    """What a batch takes where that is more than this machine's memory."""

    needed_bytes: int
    memory_bytes: int
    by_images: bool
    """Whether the images alone are beyond it, however many of them the model is given at once."""

    @property
    def words(self) -> str:
        """The middle of a sentence."""
        needed, memory = (one / 1e9 for one in (self.needed_bytes, self.memory_bytes))
        return f"takes at least {needed:,.1f} GB at once, and this machine has {memory:,.1f} GB"


def shortage(
    model: nn.Module,
    image_shape: tuple[int, ...],
    image_count: int,
    at_once: int,
    *,
    by_pixels: bool,
) -> Shortage | None:
    """How much more than the memory a batch takes; None where it may fit.

    What is counted is less than what is held: where this is beyond the memory, the batch is.

    Args:
        model: That is given the images; nothing is computed.
        image_shape: Channels, height and width of each image.
        image_count: Images that are held.
        at_once: Of which the model is given so many at once, and its gradient taken.
        by_pixels: Whether a derivative by the images is taken, as an attack does, or by parameters alone.
    """
    batches, memory = _BATCHES * _FLOAT_BYTES * image_count * math.prod(image_shape), machine_bytes()
    if batches > memory:
        return Shortage(batches, memory, by_images=True)
    needed = kept_bytes(model, image_shape, at_once, by_pixels=by_pixels)
    return Shortage(needed, memory, by_images=False) if needed > memory else None


def kept_bytes(model: nn.Module, image_shape: tuple[int, ...], at_once: int, *, by_pixels: bool) -> int:
    """What the forward pass keeps of images for its gradient; less, or 0, where nobody can tell.

    Found on tensors without content, so that nothing of it is made. Layers in front of the first trainable parameter
    keep nothing unless the derivative by the pixels is taken; a tensor that several operations keep counts once.

    Args:
        model: In the mode in which it stays.
        image_shape: Channels, height and width of each image.
        at_once: How many the model is given.
        by_pixels: Whether the derivative by the images is taken too.
    """
    state = {
        name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    weights = {tensor.untyped_storage()._cdata for tensor in state.values()}
    # The storages themselves are held too, or another one might get the number of one that is gone.
    kept = dict[int, torch.UntypedStorage]()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    images = torch.empty(at_once, *image_shape, device="meta", requires_grad=by_pixels)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    # A model of somebody's own may do what only works on numbers; then it is found out by doing it.
    with contextlib.suppress(Exception), torch.enable_grad(), hooks:
        # No leaf, so that a first layer may write on it.
        call_with(model, state, images.clone())
    return sum(storage.nbytes() for storage in kept.values())


def machine_bytes() -> int:
    """The memory of this machine, or of the part of it that this process may use."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):
        found = min(found, int(_LIMIT.read_text()))  # "max" where there is none
    return found

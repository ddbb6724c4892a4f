"""Local steps as batch norm counts them: each of its layers keeps the number of batches that it has seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from .batch_norm import batch_norm_layers
from .facts import Fact, LocalFacts, assumed, read

_SOURCE = "batch norm's counter num_batches_tracked"


def counted_steps(before: nn.Module, after: Mapping[str, Tensor]) -> int | None:
    """By how much the counters of batch norm moved; None where they are missing or disagree.

    Args:
        before: The server's model, before the client's steps.
        after: The client's buffers by name.
    """
    moved = set()
    for name, layer in batch_norm_layers(before).items():
        counter = f"{name}.num_batches_tracked" if name else "num_batches_tracked"
        known, sent = layer.num_batches_tracked, after.get(counter)
        if isinstance(known, Tensor) and sent is not None and sent.numel() == 1:
            moved.add(int(sent) - int(known))
    return moved.pop() if len(moved) == 1 else None


def with_counted_steps(local: LocalFacts, image_count: int, steps: int | None) -> LocalFacts:
    """Epochs and batch size in place of those that are assumed, where the counted steps determine them.

    ``steps = epochs x ceil(images / batch size)``, so that one of the two often follows from the other. Where several
    answers are possible, one of them is assumed, so that the facts at least agree with the counter. What somebody told
    is left as it is.

    Args:
        local: The facts so far.
        image_count: Images that the client trained on.
        steps: From ``counted_steps``.
    """
    if steps is None or steps < 1 or not (local.epochs.assumed or local.batch_size.assumed):
        return local
    if not local.batch_size.assumed:
        batches = _batches(local.batch_size.value, image_count)
        return local if steps % batches else replace(local, epochs=read(steps // batches, _SOURCE))
    if not local.epochs.assumed:
        batches, rest = divmod(steps, local.epochs.value)
        return local if rest else replace(local, batch_size=_batch_size(batches, image_count))
    if steps == 1:
        return replace(local, epochs=read(1, _SOURCE), batch_size=read(None, _SOURCE))
    # Of all ways to come to so many steps the one that does not hang on the order of the images.
    why = f"{_SOURCE} tells {steps} steps, not in how many epochs"
    return replace(local, epochs=assumed(steps, why), batch_size=assumed(None, why))


def _batch_size(batches: int, image_count: int) -> Fact[int | None]:
    """The batch size that makes so many batches of the images."""
    if batches == 1:
        return read(None, _SOURCE)
    possible = [size for size in range(1, image_count) if _batches(size, image_count) == batches]
    if len(possible) == 1:
        return read(possible[0], _SOURCE)
    if not possible:
        return Fact(None)
    return assumed(possible[0], f"{_SOURCE} tells {batches} batches, of {possible[0]} to {possible[-1]} images")


def _batches(size: int | None, image_count: int) -> int:
    return math.ceil(image_count / min(size or image_count, image_count))

"""The final choice of images, by evidence that the attacker has."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_SWEEPS = 2
# A seed replaces the consensus only where its evidence is better by this factor than the consensus's and than that of
# the median seed. The mean of the seeds never has a larger squared error than the seeds have on average (the square is
# convex), and the less they agree the smaller it is. So among seeds that the evidence cannot tell apart the mean is the
# better guess, even where its own gradient matches worse than theirs; a seed that found what the others did not stands
# out among them.
STANDS_OUT = 0.8


@dataclass(frozen=True)
class Choice:
    """The chosen batch (normalised), where each image came from, and its evidence."""

    images: Float[Tensor, "batch channel height width"]
    sources: tuple[int, ...]
    """For each image, the position of the batch that it was taken from."""
    evidence: float


def choose(
    seeds: Float[Tensor, "seed batch channel height width"],
    consensus: Float[Tensor, "batch channel height width"],
    evidence: Callable[[Float[Tensor, "batch channel height width"]], float],
) -> Choice:
    """Start from the consensus, or from the seed that is clearly better, then exchange image by image, keeping what
    clearly helps. The gradient mixes all images, so each exchange is judged within the whole batch.

    Args:
        seeds: Each seed's batch, in one order.
        consensus: The consensus, in the same order; position ``len(seeds)`` in ``sources``.
        evidence: Distance from what was captured; a batch for which it is not finite is never chosen over another.
    """
    batches = torch.cat([seeds, consensus[None]])
    values = [_finite(evidence(batch)) for batch in batches]
    last, count = len(seeds), batches.shape[1]
    best = min(range(len(seeds)), key=values.__getitem__)
    stands_out = values[best] < STANDS_OUT * min(values[last], statistics.median(values[:last]))
    start = best if stands_out else last
    images, value, sources = batches[start].clone(), values[start], [start] * count
    # One image of many moves the evidence of the batch by its share only.
    clear = 1 - (1 - STANDS_OUT) / count
    for _ in range(_SWEEPS):
        changed = False
        for image in range(count):
            found = [
                value if candidate == sources[image] else _finite(evidence(_exchanged(images, batch, image)))
                for candidate, batch in enumerate(batches)
            ]
            candidate = min(range(len(found)), key=found.__getitem__)
            bar = value if candidate == last else min(value, statistics.median(found[:last]))
            if candidate != sources[image] and found[candidate] < clear * bar:
                images, value, changed = _exchanged(images, batches[candidate], image), found[candidate], True
                sources[image] = candidate
        if not changed:
            break
    return Choice(images, tuple(sources), value)


def _exchanged(images: Tensor, batch: Tensor, image: int) -> Tensor:
    trial = images.clone()
    trial[image] = batch[image]
    return trial


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf

"""The final choice of images, by evidence that the attacker has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

_SWEEPS = 2


@dataclass(frozen=True)
class Choice:
    """The chosen batch (normalised), where each image came from, and its gradient loss."""

    images: Float[Tensor, "batch channel height width"]
    sources: tuple[int, ...]
    """For each image, the position of the batch that it was taken from."""
    gradient_loss: float


def choose(
    batches: Float[Tensor, "candidate batch channel height width"],
    gradient_loss: Callable[[Float[Tensor, "batch channel height width"]], float],
) -> Choice:
    """Start from the batch whose gradient is closest to the captured one, then exchange image by image, keeping what
    brings it closer still. The gradient mixes all images, so each exchange is judged within the whole batch.

    Args:
        batches: Candidates in one order: each seed's batch and the consensus.
        gradient_loss: Evidence; a batch for which it is not finite is never chosen.
    """
    losses = [_finite(gradient_loss(batch)) for batch in batches]
    best = min(range(len(losses)), key=losses.__getitem__)
    images, loss = batches[best].clone(), losses[best]
    sources = [best] * batches.shape[1]
    for _ in range(_SWEEPS):
        changed = False
        for image in range(batches.shape[1]):
            for candidate in range(len(batches)):
                if candidate == sources[image]:
                    continue
                trial = images.clone()
                trial[image] = batches[candidate, image]
                trial_loss = _finite(gradient_loss(trial))
                if trial_loss < loss:
                    images, loss, changed = trial, trial_loss, True
                    sources[image] = candidate
        if not changed:
            break
    return Choice(images, tuple(sources), loss)


def _finite(loss: float) -> float:
    return loss if loss == loss else float("inf")

"""What an agent hands to the coordinator."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from .outcome import Outcome


@dataclass(frozen=True)
class Candidate:
    """One seed's batch after some steps.

    ``incarnation`` counts the restarts of the seed; together with ``step`` it tells an old result from a new one.
    ``losses`` holds each term of the objective before its weight is applied, and the weighted ``total``.
    """

    images: Float[Tensor, "batch channel height width"]
    """Normalised pixels."""
    seed: int
    incarnation: int
    step: int
    losses: dict[str, float]
    outcome: Outcome
    seconds: float = 0.0
    """Time spent in optimisation steps since the previous candidate."""
    messages: tuple[str, ...] = ()
    trace: tuple[dict[str, float], ...] = ()
    """The losses on the way since the previous candidate, one row per recorded ``step``."""
    labels: Float[Tensor, "batch classes"] | None = None
    """The probability of each class, where labels are optimised with the images."""

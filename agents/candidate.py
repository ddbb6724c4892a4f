"""What an agent hands to the coordinator: its batch, and an account of how it came to it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from .outcome import Outcome


@dataclass(frozen=True)
class Standing:
    """Where one seed stands, without its images.

    ``incarnation`` counts the restarts of the seed; together with ``step`` it tells an old standing from a new one.
    ``losses`` holds each term of the objective before its weight is applied, and the weighted ``total``; empty before
    the first are known.
    """

    seed: int
    incarnation: int
    step: int
    losses: dict[str, float]
    outcome: Outcome
    labels: Float[Tensor, "batch classes"] | None = None
    """The probability of each class, where labels are optimised with the images."""


@dataclass(frozen=True)
class Candidate(Standing):
    """The batch of one seed, and where it stands."""

    images: Float[Tensor, "batch channel height width"] = field(kw_only=True)
    """Normalised pixels."""


@dataclass(frozen=True)
class Failure:
    """A seed's descent failed numerically. It began again, unless its restarts were used up."""

    step: int
    outcome: Outcome
    incarnation: int
    """Of the restart that this one asked for."""
    restarts: int
    """How many a seed may have."""

    @property
    def dropped(self) -> bool:
        """Whether the seed is out of the run."""
        return self.incarnation > self.restarts

    def of(self, seed: str) -> str:
        """The sentence for people.

        Args:
            seed: What the seed is called there.
        """
        what = f"{seed} failed at step {self.step}: {self.outcome.value}"
        if self.dropped:
            return f"{what}; its {self.restarts} restarts are used up, so it is dropped."
        return f"{what}; restart {self.incarnation} of {self.restarts}."


@dataclass(frozen=True)
class Account(Standing):
    """Where one seed stands, and what happened since its previous account."""

    seconds: float = 0.0
    """Time spent in optimisation steps."""
    failures: tuple[Failure, ...] = ()
    trace: tuple[dict[str, float], ...] = ()
    """The losses on the way, one row per recorded ``step``."""

    def after(self, earlier: Account) -> Account:
        """This account and an earlier one of the same seed as one; losses that this one lacks are the earlier ones,
        unless the seed has begun again since."""
        known = earlier.losses if earlier.incarnation == self.incarnation else {}
        return replace(
            self,
            losses=self.losses or known,
            seconds=earlier.seconds + self.seconds,
            failures=(*earlier.failures, *self.failures),
            trace=(*earlier.trace, *self.trace),
        )

    def told(self) -> Account:
        """Where the seed stands, with nothing that happened: it was told."""
        return replace(self, seconds=0.0, failures=(), trace=())

    def with_images(self, images: Float[Tensor, "batch channel height width"]) -> Candidate:
        """The candidate that this is the account of.

        Args:
            images: Of the seed where it stands, normalised pixels.
        """
        return Candidate(self.seed, self.incarnation, self.step, self.losses, self.outcome, self.labels, images=images)

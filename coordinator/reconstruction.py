"""The result of an attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..agents import Candidate, Outcome
from ..capture import Normalisation, RecoveredLabels
from ..capture.stated import StatedFact
from ..peeling import KnownFeatures
from ..peeling.record import PeelingRecord
from ..target.belief import Belief

_SHOWN_LABELS = 16


@dataclass(frozen=True)
class Source:
    """Where one image of the answer was taken from."""

    seed: int | None = None
    """The seed whose own candidate it is; None: the consensus, in which all seeds have a part, or the start."""
    start: bool = False
    """Whether it is as the first seed began at it, since what the seeds made of it fits the gradient less."""

    @property
    def of_one_seed(self) -> bool:
        """Whether seeds had no part in it but one."""
        return self.start or self.seed is not None

    def __str__(self) -> str:
        if self.start:
            return "start"
        return "consensus" if self.seed is None else f"seed {self.seed}"


@dataclass(frozen=True)
class Reconstruction:
    """What the attack recovered, how it went, and the settings that produced it. Nothing here saw a private image."""

    images: Float[Tensor, "batch channel height width"]
    """The answer, in [0, 1]."""
    labels: RecoveredLabels
    consensus: Float[Tensor, "batch channel height width"]
    """The last consensus of the registered candidates, in [0, 1]."""
    agreement: Float[Tensor, " batch"]
    """How well the seeds agree on each image, in [0, 1]."""
    candidates: tuple[Candidate, ...]
    """The last candidate of each seed that survived, in order of seed (normalised pixels)."""
    sources: tuple[Source, ...]
    """Where each image of the answer came from."""
    gradient_loss: float
    """Relative layer norm of the answer over all parameters (`Objective.gradient_loss`)."""
    history: tuple[dict[str, float], ...]
    """One row per agent and round: round, seed, incarnation, step, each loss term, total, steps_per_second."""
    registration: tuple[dict[str, float], ...]
    """One row per consensus: round, step, seeds, rejected (share of warps refused), agreement (mean)."""
    rounds: int
    iterations: int
    seconds: float
    restarts: int
    outcome: Outcome
    messages: tuple[str, ...]
    config: dict[str, Any]
    """The resolved configuration as plain values."""
    model_id: str
    batch_norm: str
    defence: str
    normalisation: Normalisation
    belief: Belief
    """What the attack took the update for."""
    training: str = ""
    """What was taken for granted about the client's local steps; empty for a gradient."""
    facts: tuple[StatedFact, ...] = ()
    """What was believed of the client, each fact with how it was known, the most decisive first."""
    limits: tuple[str, ...] = ()
    """Why the images say less than they seem to, one sentence each: with one, no verdict is reassuring."""
    known: KnownFeatures | None = None
    """Features of every image that the gradient determines."""
    peeling: PeelingRecord | None = None
    """What peeling did; None where it was left out."""

    def __repr__(self) -> str:
        """What came of the attack, in three lines; ``images``, ``labels`` and the rest are its fields."""
        shape = " x ".join(map(str, self.images.shape[1:]))
        found = ", ".join(map(str, self.labels.labels.tolist()[:_SHOWN_LABELS]))
        more = ", …" if len(self.labels.labels) > _SHOWN_LABELS else ""
        return (
            f"Reconstruction({len(self.images)} images of {shape} from {self.model_id}, {self.outcome})\n"
            f"  gradient loss {self.gradient_loss:.4g} after {self.iterations} steps of {len(self.candidates)} seeds, "
            f"{self.seconds:.1f} s\n"
            f"  labels {found}{more} ({self.labels.method})"
        )

    @property
    def candidate_images(self) -> Float[Tensor, "seed batch channel height width"]:
        """The candidates' images in [0, 1], shape ``(N, B, C, H, W)``."""
        import torch

        stacked = torch.stack([candidate.images for candidate in self.candidates])
        return self.normalisation.invert(stacked).clamp(0, 1)

"""What registration changed, as pictures: for a report or a page."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .consensus import Consensus


@dataclass(frozen=True)
class Change:
    """Before and after registration, image by image."""

    before: Float[Tensor, "image channel height width"]
    """The plain mean of the candidates, in their own pixel scale."""
    after: Float[Tensor, "image channel height width"]
    """The consensus, in the same scale."""
    flows: Float[Tensor, "seed image 3 height width"]
    """Each candidate's displacement in colours (see `flow_picture`), all on one scale; white where none was used."""
    largest_displacement: float
    """Pixels of full colour in ``flows``."""
    mean_displacement: tuple[float, ...]
    """Pixels per image, root mean square over seeds and places."""
    difference: tuple[float, ...]
    """Root mean square of ``after - before`` per image, in the candidates' own pixel scale."""
    rejected: tuple[int, ...]
    """Refused warps per image."""


def change(candidates: Float[Tensor, "seed image channel height width"], consensus: Consensus) -> Change:
    """What `register` changed against the plain mean of the candidates that it used.

    Args:
        candidates: Those that took part, in the order of ``consensus.seeds``.
        consensus: What `register` returned for them.

    Raises:
        ValueError: As many candidates as ``consensus.seeds`` are needed.
    """
    if len(candidates) != len(consensus.seeds):
        raise ValueError(
            f"{len(candidates)} candidates were given for a consensus of seeds {consensus.seeds}: "
            "pass the candidates that took part, in that order"
        )
    before = candidates.mean(0)
    displacement = consensus.displacement
    if displacement is None:
        height, width = candidates.shape[-2:]
        displacement = candidates.new_zeros(*candidates.shape[:2], 2, height, width)
    lengths = displacement.square().sum(2)
    largest = float(lengths.amax().sqrt())
    return Change(
        before=before,
        after=consensus.images,
        flows=flow_picture(displacement, largest),
        largest_displacement=largest,
        mean_displacement=tuple(lengths.mean(dim=(0, 2, 3)).sqrt().tolist()),
        difference=tuple((consensus.images - before).square().flatten(1).mean(1).sqrt().tolist()),
        rejected=tuple(int(count) for count in consensus.rejected.sum(0).tolist()),
    )


def flow_picture(
    displacement: Float[Tensor, "*batch 2 height width"], largest: float
) -> Float[Tensor, "*batch 3 height width"]:
    """Displacement as colour in [0, 1]: hue is the direction, saturation the length; white does not move.

    Args:
        displacement: x then y.
        largest: Length of full saturation, in the same unit.
    """
    x, y = displacement.unbind(dim=-3)
    length = ((x.square() + y.square()).sqrt() / max(largest, 1e-9)).clamp(0, 1)
    angle = torch.atan2(y, x)
    shifts = (0.0, 2 * math.pi / 3, -2 * math.pi / 3)
    return torch.stack([1 - length * (0.5 - 0.5 * torch.cos(angle - shift)) for shift in shifts], dim=-3)

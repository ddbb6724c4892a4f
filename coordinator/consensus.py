"""From the candidates of all seeds to one consensus."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..registration import Consensus, RegistrationConfig, register
from .permutations import match_images, permute


def form_consensus(
    images: Float[Tensor, "seed batch channel height width"],
    seeds: Sequence[int],
    labels: Int[Tensor, " batch"],
    round: int,
    config: RegistrationConfig,
    device: str = "cpu",
) -> tuple[Consensus, Int[Tensor, "seed batch"]]:
    """Match the candidates' images (those of one label may stand at other places), then register them.

    Args:
        images: Normalised candidates, each image at its seed's own place.
        seeds: Of the candidates.
        labels: The batch's labels, the same for every seed.
        round: Index, kept in the consensus.
        config: How to register.
        device: Where to register; the consensus stays there.

    Returns:
        The consensus, its images at the first seed's places, and for each seed which of its images stands there.
    """
    permutations = match_images(images, labels)
    permuted = permute(images, permutations).to(device)
    return register(permuted, seeds=list(seeds), round=round, config=config), permutations


def parts_by_label(labels: Int[Tensor, " batch"], most: int) -> list[tuple[int, ...]]:
    """The places of the batch in at most so many parts of about equal size; images of one label stay together.

    Registration looks at each image alone, and only images of one label change places, so that parts can be registered
    apart.

    Args:
        labels: The batch's labels.
        most: At least 1.
    """
    groups: dict[int, list[int]] = {}
    for place, label in enumerate(labels.tolist()):
        groups.setdefault(label, []).append(place)
    parts: list[list[int]] = [[] for _ in range(max(1, min(most, len(groups))))]
    several = [places for places in groups.values() if len(places) > 1]
    for places in sorted(several, key=len, reverse=True):
        min(parts, key=len).extend(places)
    # Neighbours travel together as they lie in memory, without being brought together first.
    singles = [places[0] for places in groups.values() if len(places) == 1]
    for index, part in enumerate(parts):
        left = len(singles) + sum(map(len, parts[index:]))
        wanted = max(0, -(-left // (len(parts) - index)) - len(part))
        part.extend(singles[:wanted])
        del singles[:wanted]
    return [tuple(sorted(part)) for part in parts]


def join_parts(
    parts: Sequence[tuple[Sequence[int], Consensus, Int[Tensor, "seed _"]]], batch: int
) -> tuple[Consensus, Int[Tensor, "seed batch"]]:
    """The whole consensus from its parts; displacements are left out (they are as large as the candidates).

    Args:
        parts: For each part its places in the batch, its consensus, and its permutations (positions within the part).
        batch: Images in all.
    """
    first = parts[0][1]
    # A seed may be left out of one part alone.
    seeds = tuple(sorted({seed for _, consensus, _ in parts for seed in consensus.seeds}))
    images = first.images.new_empty(batch, *first.images.shape[1:])
    agreement = first.agreement.new_empty(batch)
    rejected = first.rejected.new_zeros(len(seeds), batch)
    permutations = torch.empty(len(parts[0][2]), batch, dtype=torch.long)
    for places, consensus, within in parts:
        where = torch.tensor(places)
        rows = torch.tensor([seeds.index(seed) for seed in consensus.seeds])
        images[where], agreement[where] = consensus.images, consensus.agreement
        rejected[rows[:, None], where], permutations[:, where] = consensus.rejected, where[within]
    left_out = tuple(dict.fromkeys(one for _, consensus, _ in parts for one in consensus.left_out))
    return Consensus(images, agreement, seeds, first.round, None, rejected, left_out), permutations

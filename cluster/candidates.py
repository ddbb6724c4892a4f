"""The candidates of a round: what the agents say of them is here, their images stay where they were made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
import torch
from jaxtyping import Int
from ray.exceptions import RayError
from torch import Tensor

from ..agents import Candidate
from ..coordinator import CandidatesLostError, form_consensus
from ..registration import Consensus, RegistrationConfig
from .member import Member
from .registering import form_in_parts
from .transport import tensor

Parts = Sequence[tuple[int, ...]]
"""Places of the batch whose images travel together; with a single part, candidates are registered here."""


def fetch(members: Sequence[Member], parts: Parts) -> list[Candidate]:
    """The members' newest candidates with their images.

    Raises:
        CandidatesLostError: Some are gone.
    """
    found, lost = [], []
    for member in members:
        assert member.account is not None
        try:
            arrays = ray.get(list(member.images))
        except RayError:
            lost.append(member.position)
            continue
        images = torch.empty(sum(map(len, parts)), *arrays[0].shape[1:])
        for part, array in zip(parts, arrays, strict=True):
            images[list(part)] = tensor(array)
        found.append(member.account.with_images(images))
    if lost:
        raise CandidatesLostError(lost)
    return found


def register_candidates(
    members: Sequence[Member],
    parts: Parts,
    workers: Sequence[Any],
    labels: Int[Tensor, " batch"],
    round: int,
    config: RegistrationConfig,
) -> tuple[Consensus, Int[Tensor, "seed batch"]]:
    """Register the members' newest candidates; see `coordinator.form_consensus`.

    Args:
        members: Whose candidates.
        parts: Of the batch.
        workers: Actors of agents that have nothing else to do now.
        labels: Of the batch.
        round: Index.
        config: How to register.

    Raises:
        CandidatesLostError: Some are gone.
    """
    seeds = [member.seed for member in members]
    if len(parts) == 1:
        images = torch.stack([candidate.images for candidate in fetch(members, parts)])
        return form_consensus(images, seeds, labels, round, config)
    shared = [member.images for member in members]
    try:
        return form_in_parts(parts, shared, workers, seeds, labels, round, config)
    except RayError:
        fetch(members, parts)  # says which candidates are gone, if any
        return form_in_parts(parts, shared, [], seeds, labels, round, config)

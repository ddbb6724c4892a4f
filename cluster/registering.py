"""The consensus where it is formed: in the coordinator for small batches, else in parts beside the agents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import ray
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from ..coordinator import form_consensus, join_parts
from ..registration import Consensus, RegistrationConfig
from .transport import tensor

# Candidates of all seeds beyond this are registered in parts: they would otherwise all pass through the coordinator.
LARGEST_WHOLE_BYTES = 64 * 2**20
# No part holds more of all candidates than this, as far as the labels allow: whoever registers it needs the memory.
LARGEST_PART_BYTES = 64 * 2**20


def count_parts(seeds: int, batch_bytes: int) -> int:
    """In how many parts the candidates of all seeds are registered.

    Args:
        seeds: Of the run.
        batch_bytes: Of one candidate.
    """
    whole = seeds * batch_bytes
    if whole <= LARGEST_WHOLE_BYTES:
        return 1
    # One part per agent, so that in sync mode all of them work on it; more where a part would be large.
    return max(seeds if seeds <= 16 else 16, -(-whole // LARGEST_PART_BYTES))


def register_part(
    device: str,
    images: Sequence[Any],
    seeds: Sequence[int],
    labels: Int[Tensor, " part"],
    round: int,
    config: RegistrationConfig,
) -> tuple[NDArray[Any], Consensus, Int[Tensor, "seed part"]]:
    """The consensus of some images of the batch; the images first, since arrays travel faster.

    Args:
        device: Where to register.
        images: A reference for each seed.
        seeds: Of the candidates.
        labels: Of these images.
        round: Index.
        config: How to register.
    """
    candidates = torch.from_numpy(np.stack(ray.get(list(images))))
    found, permutations = form_consensus(candidates, seeds, labels, round, config, device)
    rest = replace(
        found,
        images=torch.empty(*found.images.shape[:-1], 0),
        agreement=found.agreement.cpu(),
        rejected=found.rejected.cpu(),
        displacement=None,
    )
    return found.images.cpu().numpy(), rest, permutations


def warm_up(device: str) -> None:
    """Register something small, so that the first time it matters nothing is left to import or to compile."""
    images = torch.linspace(-1, 1, 2 * 2 * 3 * 32 * 32).view(2, 2, 3, 32, 32)
    form_consensus(images, [0, 1], torch.arange(2), 0, RegistrationConfig(), device)


def _register_parts(parts: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [register_part("cpu", *arguments) for arguments in parts]


# Tasks of their own where no agent is free (`async`), or the one that was asked is lost.
_register_parts_task: Any = ray.remote(num_cpus=0, max_retries=2)(_register_parts)


def form_in_parts(
    parts: Sequence[tuple[int, ...]],
    images: Sequence[Sequence[Any]],
    workers: Sequence[Any],
    seeds: Sequence[int],
    labels: Int[Tensor, " batch"],
    round: int,
    config: RegistrationConfig,
) -> tuple[Consensus, Int[Tensor, "seed batch"]]:
    """The consensus, each part of the batch formed where there is room; no candidate passes through here.

    Args:
        parts: Places of the batch.
        images: References by seed and part.
        workers: Agents that have nothing else to do now; without any, tasks of their own are started.
        seeds: Of the candidates.
        labels: Of the whole batch.
        round: Index.
        config: How to register.

    Raises:
        RayError: A candidate, or whoever worked on it, was lost.
    """
    arguments = [
        ([row[index] for row in images], list(seeds), labels[list(part)], round, config)
        for index, part in enumerate(parts)
    ]
    if workers:
        found = ray.get([workers[index % len(workers)].register.remote(*one) for index, one in enumerate(arguments)])
    else:
        # No more processes than processors: each one imports torch, while agents compute on the same ones.
        processors = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
        size = -(-len(parts) // max(1, processors))
        shares = [arguments[first : first + size] for first in range(0, len(parts), size)]
        found = list(chain.from_iterable(ray.get([_register_parts_task.remote(share) for share in shares])))
    joined = [
        (part, replace(rest, images=tensor(array)), permutations)
        for part, (array, rest, permutations) in zip(parts, found, strict=True)
    ]
    return join_parts(joined, len(labels))

"""Images that share a label may stand at other places in every seed: match them, and permute each seed's batch."""

from __future__ import annotations

import scipy
import torch
from jaxtyping import Float, Int
from torch import Tensor


def match_images(
    candidates: Float[Tensor, "seed batch channel height width"], labels: Int[Tensor, " batch"]
) -> Int[Tensor, "seed batch"]:
    """For each seed, which of its images belongs at each place of the first seed's batch.

    Images are exchanged only within a label; there, the assignment with the least squared distance to the first seed
    is taken. With labels that all differ this is the identity.

    Args:
        candidates: Normalised images of all seeds.
        labels: The batch's labels, the same in every seed.
    """
    seeds, batch = candidates.shape[:2]
    permutations = torch.arange(batch).repeat(seeds, 1)
    for label in sorted(set(labels.tolist())):
        places = (labels == label).nonzero().flatten()
        if len(places) < 2:
            continue
        reference = candidates[0, places].flatten(1).double()
        for seed in range(1, seeds):
            distance = torch.cdist(reference, candidates[seed, places].flatten(1).double()).square()
            _, columns = scipy.optimize.linear_sum_assignment(distance.numpy())
            permutations[seed, places] = places[torch.as_tensor(columns)]
    return permutations


def permute(
    images: Float[Tensor, "seed batch channel height width"], permutations: Int[Tensor, "seed batch"]
) -> Float[Tensor, "seed batch channel height width"]:
    """Each seed's images at the places of the first seed's; the same tensor where no image has to move."""
    if bool((permutations == torch.arange(permutations.shape[1])).all()):
        return images
    return torch.stack([batch[permutation] for batch, permutation in zip(images, permutations, strict=True)])


def invert(permutations: Int[Tensor, "seed batch"]) -> Int[Tensor, "seed batch"]:
    """For each seed, which image of the first seed's batch belongs at each place of its own."""
    return permutations.argsort(dim=1)

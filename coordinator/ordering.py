"""Images that share a label may stand in another order in every seed: bring them into one."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def common_order(
    candidates: Float[Tensor, "seed batch channel height width"], labels: Int[Tensor, " batch"]
) -> Int[Tensor, "seed batch"]:
    """For each seed, which of its images stands at each place of the first seed's order.

    Images are exchanged only within a label; there, the assignment with the least squared distance to the first seed
    is taken. With labels that all differ this is the identity.

    Args:
        candidates: Normalised images of all seeds.
        labels: The batch's labels, the same in every seed.
    """
    from scipy.optimize import linear_sum_assignment  # where it is used: agents are processes without this need

    seeds, batch = candidates.shape[:2]
    orders = torch.arange(batch).repeat(seeds, 1)
    for label in sorted(set(labels.tolist())):
        places = (labels == label).nonzero().flatten()
        if len(places) < 2:
            continue
        reference = candidates[0, places].flatten(1).double()
        for seed in range(1, seeds):
            distance = torch.cdist(reference, candidates[seed, places].flatten(1).double()).square()
            _, columns = linear_sum_assignment(distance.numpy())
            orders[seed, places] = places[torch.as_tensor(columns)]
    return orders


def arrange(
    images: Float[Tensor, "seed batch channel height width"], orders: Int[Tensor, "seed batch"]
) -> Float[Tensor, "seed batch channel height width"]:
    """Each seed's images in the common order; the same tensor where no image has to move."""
    if bool((orders == torch.arange(orders.shape[1])).all()):
        return images
    return torch.stack([batch[order] for batch, order in zip(images, orders, strict=True)])


def back_to_own_order(orders: Int[Tensor, "seed batch"]) -> Int[Tensor, "seed batch"]:
    """For each seed, which image of the common order belongs at each place of its own: the inverse permutations."""
    return orders.argsort(dim=1)

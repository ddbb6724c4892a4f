"""Which reconstructed image stands for which private image: a gradient is an average and keeps no order."""

from __future__ import annotations

from dataclasses import dataclass

import scipy
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Matching:
    """A matching, one to one where no private image is there more than once, and the rule that made it."""

    order: tuple[int, ...]
    """For each private image, the index of the reconstructed image that is compared with it."""
    method: str
    """``"labels"`` or ``"assignment"``."""
    reason: str
    """Why this rule was used, as a sentence for the report."""


def match(
    images: Float[Tensor, "found channel height width"],
    labels: Int[Tensor, " found"],
    true_images: Float[Tensor, "batch channel height width"],
    true_labels: Int[Tensor, " batch"],
) -> Matching:
    """The matching of reconstructed to private images.

    By label when the private labels are unique and the recovered ones are the same: then each image has one possible
    partner and nothing is chosen in the attack's favour. Otherwise the assignment with the least total squared error.

    Args:
        images: the reconstruction, in [0, 1]; at least as many as are private.
        labels: the label that each reconstructed image was optimised for.
        true_images: the private images, in [0, 1].
        true_labels: their labels.
    """
    true, recovered = true_labels.tolist(), labels.tolist()
    if len(set(true)) < len(true):
        reason = "labels repeat in the private batch"
    elif sorted(true) != sorted(recovered):
        reason = "the recovered labels are not those of the private batch"
    else:
        order = tuple(recovered.index(label) for label in true)
        return Matching(order, "labels", "by label: the private labels are unique and all of them were recovered")
    return Matching(
        assign(images, true_images),
        "assignment",
        f"by the assignment with the least squared error, because {reason}; this favours the attack a little",
    )


def assign(
    images: Float[Tensor, "found channel height width"], true_images: Float[Tensor, "batch channel height width"]
) -> tuple[int, ...]:
    """For each private image the reconstructed image of the one-to-one assignment with the least total squared error.

    Solved exactly (Kuhn-Munkres as in scipy). Pixels that are not finite count as the largest possible error. A private
    image that is there more than once is recovered where one reconstruction is it: all its copies have the nearest one
    of those that they were assigned.
    """
    difference = true_images.double().flatten(1)[:, None] - images.double().flatten(1)[None]
    cost = torch.nan_to_num(difference.square().mean(2), nan=1.0, posinf=1.0)
    order = scipy.optimize.linear_sum_assignment(cost.numpy())[1]
    own, copies = cost[:, order], same_images(true_images)
    nearest = torch.where(copies, own, torch.inf).argmin(dim=1)
    return tuple(int(index) for index in order[nearest.numpy()])


def same_images(images: Float[Tensor, "batch channel height width"]) -> Bool[Tensor, "batch batch"]:
    """Which images of a batch are equal, pixel by pixel."""
    which = torch.unique(images.flatten(1), dim=0, return_inverse=True)[1]
    return which[:, None] == which[None]

"""The column space of a final layer's gradient, and how far a row of it that an image would have lies outside."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_LEAST_HEIGHT = 1e-10


@dataclass(frozen=True)
class Space:
    """What is left to explain: the weighted gradient is ``left @ diag(sizes) @ right.T``."""

    left: Float[Tensor, "class rank"]
    sizes: Float[Tensor, " rank"]
    right: Float[Tensor, "feature rank"]
    logits: Float[Tensor, "class rank"]
    """``W V``."""
    weights: Float[Tensor, " class"]
    """What the rows were multiplied with."""
    origin: Float[Tensor, " rank"]
    """A point where the appended feature is one; zeros without a bias."""
    free: Float[Tensor, "rank free"]
    """Directions that leave it one."""
    inverse_heights: Float[Tensor, " class"]
    """``1 / |(I - U U^T) e_k|^2``; 0 where the unit vector lies inside the column space."""

    def outside(
        self, rows: Float[Tensor, "start class"], labels: Int[Tensor, " start"]
    ) -> Float[Tensor, "start class"]:
        """The part of each row outside the span of the column space and of its label's unit vector.

        The label's own entry, ``p_y - 1``, has lost digits in float32 wherever the model is sure. The error is a
        multiple of ``e_y f^T``, so that the entry counts as unknown and nothing else changes.
        """
        rest = rows - (rows @ self.left) @ self.left.T
        return rest - (self.entries(rest, labels) * self.inverse_heights[labels])[:, None] * self.towards(labels)

    def towards(self, labels: Int[Tensor, " start"]) -> Float[Tensor, "start class"]:
        """``(I - U U^T) e_y``."""
        one_hot = torch.zeros(len(labels), len(self.left), dtype=self.left.dtype).scatter(1, labels[:, None], 1.0)
        return one_hot - self.left[labels] @ self.left.T

    def corrected(
        self, rows: Float[Tensor, "start class"], labels: Int[Tensor, " start"]
    ) -> Float[Tensor, "start class"]:
        """The rows with the label's entry as it was rounded."""
        rest = rows - (rows @ self.left) @ self.left.T
        correction = self.entries(rest, labels) * self.inverse_heights[labels]
        return rows.scatter_add(1, labels[:, None], -correction[:, None])

    @staticmethod
    def entries(rows: Float[Tensor, "start class"], labels: Int[Tensor, " start"]) -> Float[Tensor, " start"]:
        """Each row's entry at its label."""
        return rows.gather(1, labels[:, None])[:, 0]


def make_space(left: Tensor, sizes: Tensor, right: Tensor, weight: Tensor, weights: Tensor, has_bias: bool) -> Space:
    """The space of a gradient whose rows were multiplied with ``weights``.

    Args:
        left: U, one orthonormal column for each image that is left.
        sizes: Singular values.
        right: V, one orthonormal column for each.
        weight: Of the final layer; its bias is the last column where its gradient was sent.
        weights: One factor for each class.
        has_bias: Whether the last feature is the one of the bias.
    """
    rank = len(sizes)
    if has_bias and rank:
        last = right[-1]
        origin = last / last.square().sum().clamp_min(1e-300)
        free = torch.linalg.qr(torch.cat([last[:, None], torch.eye(rank, dtype=last.dtype)], dim=1)).Q[:, 1:rank]
    else:
        origin, free = right.new_zeros(rank), torch.eye(rank, dtype=right.dtype)
    heights = (1 - left.square().sum(dim=1)).clamp_min(0)
    inverse = torch.where(heights > _LEAST_HEIGHT, 1 / heights.clamp_min(_LEAST_HEIGHT), 0.0)
    return Space(left, sizes, right, weight @ right, weights, origin, free, inverse)


def label_rows(
    space: Space, shift: Tensor | None, points: Float[Tensor, "start rank"], labels: Int[Tensor, " start"]
) -> Float[Tensor, "start class"]:
    """``R (softmax(z) - e_y)``, the label's entry as the client's float32 must have had it.

    Args:
        space: Of the gradient.
        shift: The final layer's bias where its gradient was not sent.
        points: Features, by their coordinates in the space.
        labels: One for each of them.
    """
    logits = points @ space.logits.T + (0.0 if shift is None else shift)
    outputs = logits.softmax(dim=1).scatter(1, labels[:, None], 0.0)
    exact = outputs.scatter(1, labels[:, None], -outputs.sum(dim=1, keepdim=True))
    return space.corrected(exact * space.weights, labels)

"""Least squares for one image's feature and label, from many starts side by side."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .label_space import Space

# Entries of the Jacobians that are computed side by side.
_ENTRIES_AT_ONCE = 2**22


def descend(
    space: Space, shift: Tensor | None, points: Float[Tensor, "start rank"], labels: Int[Tensor, " start"], count: int
) -> tuple[Float[Tensor, "start rank"], Int[Tensor, " start"]]:
    """Levenberg-Marquardt on the share of ``softmax - e_y`` outside the column space, side by side; best first.

    Args:
        space: Of the gradient.
        shift: The final layer's bias where its gradient was not sent.
        points: Features to start from, by their coordinates in the space.
        labels: One for each of them.
        count: Steps.
    """
    chunk = max(1, _ENTRIES_AT_ONCE // (len(space.left) * max(len(space.sizes), 1)))
    steps, values = [], []
    for some, of in zip(
        *(torch.split(part, chunk) for part in ((points - space.origin) @ space.free, labels)), strict=True
    ):
        arrived, value = _levenberg_marquardt(space, shift, some, of, count)
        steps.append(arrived)
        values.append(value)
    order = torch.cat(values).argsort()
    return (space.origin + torch.cat(steps) @ space.free.T)[order], labels[order]


def _levenberg_marquardt(
    space: Space, shift: Tensor | None, steps: Float[Tensor, "start free"], labels: Int[Tensor, " start"], count: int
) -> tuple[Float[Tensor, "start free"], Float[Tensor, " start"]]:
    damping = steps.new_full((len(steps),), 1e-2)
    slopes = space.logits @ space.free
    towards, inverse = space.towards(labels), space.inverse_heights[labels][:, None, None]

    def evaluate(at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits = (space.origin + at @ space.free.T) @ space.logits.T + (0.0 if shift is None else shift)
        # The direction of the other entries does not depend on the label's own logit.
        shares = logits.scatter(1, labels[:, None], -torch.inf).softmax(dim=1)
        row = shares * space.weights
        length = row.norm(dim=1, keepdim=True).clamp_min(1e-300)
        return shares, row / length, length, space.outside(row / length, labels)

    state = evaluate(steps)
    value = state[3].square().sum(dim=1)
    # Where one image is left there is nothing to search: its feature is a row of the gradient.
    for _ in range(count if steps.numel() else 0):
        shares, unit, length, outside = state
        jacobian = shares[:, :, None] * (slopes - (shares @ slopes)[:, None, :])
        jacobian = jacobian * (space.weights / length)[:, :, None]
        jacobian = jacobian - unit[:, :, None] * (unit[:, None, :] @ jacobian)
        jacobian = jacobian - space.left @ (space.left.T @ jacobian)
        own = jacobian.gather(1, labels[:, None, None].expand(-1, 1, jacobian.shape[2])) * inverse
        jacobian = jacobian - towards[:, :, None] * own
        normal = jacobian.transpose(1, 2) @ jacobian
        diagonal = normal.diagonal(dim1=1, dim2=2)
        ridge = damping[:, None] * diagonal + 1e-14 * diagonal.amax(dim=1, keepdim=True)
        slope = (outside[:, None, :] @ jacobian)[:, 0, :, None]
        move = torch.linalg.solve_ex(normal + torch.diag_embed(ridge), slope).result[:, :, 0]
        trial = steps - move.nan_to_num(0.0, 0.0, 0.0)
        new_state = evaluate(trial)
        new_value = new_state[3].square().sum(dim=1)
        better = new_value < value
        steps = torch.where(better[:, None], trial, steps)
        keep = better[:, None]
        state = (
            torch.where(keep, new_state[0], state[0]),
            torch.where(keep, new_state[1], state[1]),
            torch.where(keep, new_state[2], state[2]),
            torch.where(keep, new_state[3], state[3]),
        )
        value = torch.where(better, new_value, value)
        damping = torch.where(better, damping / 5, damping * 4).clamp(1e-9, 1e6)
    return steps, value

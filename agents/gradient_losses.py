"""Distances between the candidate's gradient and the captured one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .objective_config import GradientLoss

Gradients = Sequence[Tensor]


def layer_l2(found: Gradients, target: Gradients) -> Float[Tensor, ""]:
    """``sum_l ||g_l - t_l||_2``, the norm not squared: L_grad of Yin et al. 2021, eq. 3."""
    return torch.stack([(a - b).norm() for a, b in zip(found, target, strict=True)]).sum()


def relative_l2(found: Gradients, target: Gradients) -> Float[Tensor, ""]:
    """``sum_l ||g_l - t_l||_2 / sum_l ||t_l||_2``: the paper's loss, free of the gradient's scale."""
    scale = torch.stack([b.norm() for b in target]).sum()
    return layer_l2(found, target) / scale.clamp_min(1e-30)


def squared_l2(found: Gradients, target: Gradients) -> Float[Tensor, ""]:
    """``sum_l ||g_l - t_l||_2^2``: Zhu et al. 2019 (DLG), eq. 4."""
    return torch.stack([(a - b).square().sum() for a, b in zip(found, target, strict=True)]).sum()


def cosine(found: Gradients, target: Gradients) -> Float[Tensor, ""]:
    """``1 - <g, t> / (||g|| ||t||)`` over all parameters together: Geiping et al. 2020, eq. 4."""
    product = torch.stack([(a * b).sum() for a, b in zip(found, target, strict=True)]).sum()
    # A norm of norms: unlike the root of a sum of squares it has a derivative where a dead network's gradient is zero.
    length = torch.stack([a.norm() for a in found]).norm()
    target_length = torch.stack([b.norm() for b in target]).norm()
    return 1 - product / (length * target_length).clamp_min(1e-30)


GRADIENT_LOSSES: dict[GradientLoss, Callable[[Gradients, Gradients], Float[Tensor, ""]]] = {
    GradientLoss.LAYER_L2: layer_l2,
    GradientLoss.RELATIVE_L2: relative_l2,
    GradientLoss.SQUARED_L2: squared_l2,
    GradientLoss.COSINE: cosine,
}

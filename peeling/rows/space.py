"""The space that the rows of a weight gradient span, where they are sums over so many places."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...capture import sent_type

# Rows are weighed by so much of the inverse of their length: rounding is in proportion to it, added noise is not.
_WEIGHED = (1.0, 0.5, 0.0)


@dataclass(frozen=True)
class RowSpace:
    """An orthonormal basis."""

    basis: Float[Tensor, "place channel"]
    moments: Float[Tensor, " place"]
    """Singular values of the weighed gradient."""
    floor: float
    """The next one, or what rounding leaves."""

    @property
    def noise(self) -> float:
        """Over signal, in the weakest direction."""
        return self.floor / max(float(self.moments[-1]), 1e-300)


def row_space(weight_gradient: Float[Tensor, "output channel *ones"], places: int) -> RowSpace | None:
    """The space, of the weights of rows by which it stands out most; None where there are too few rows, or they are
    not finite.

    Args:
        weight_gradient: As captured, of a pointwise convolution.
        places: Of the whole batch.
    """
    gradient = weight_gradient.detach().cpu().double().flatten(1)
    length = gradient.norm(dim=1)
    heard = length > 0
    if not 1 <= places <= min(int(heard.sum()), gradient.shape[1]) or not bool(torch.isfinite(length).all()):
        return None
    rounding = float(torch.finfo(sent_type(weight_gradient)).eps / 4)
    found = []
    for power in _WEIGHED:
        weighed = gradient[heard] * length[heard, None] ** -power
        _, moments, right = torch.linalg.svd(weighed, full_matrices=False)
        behind = float(moments[places]) if places < len(moments) else 0.0
        found.append(RowSpace(right[:places], moments[:places], max(behind, rounding * float(moments[0]))))
    return min(found, key=lambda one: one.noise)

"""One linear layer: its input from its weight gradient, and the ReLU behind it mended."""

from __future__ import annotations

import torch
from torch import Tensor

from .layers import LARGEST, SETTLED, UNSOLVED, Equations, Solved, relative, rounding, size, worst

_REWEIGHTINGS = 20
# The rows with the smallest misfits, a share of all, are right.
_RIGHT = 0.3
# By which share units that are switched must lower the misfit.
_LEAST_GAIN = 0.05
# More columns of a gradient than so many are mixed, to spare memory.
_MOST_COLUMNS = 1024


def peel_linear(given: Equations) -> Solved:
    """The input ``A`` of a linear layer from ``gradient = cotangent^T A``, a linear system with one row per image.

    Args:
        given: What the input has to obey.
    """
    cotangent, outputs, known, doubtful = given.cotangent, given.outputs, given.known, given.doubtful
    gradient, least = given.weight_gradient.to(cotangent), rounding(given.weight_gradient)
    activations = _solve(cotangent, gradient)
    if activations is None:
        return UNSOLVED
    misfit = relative(cotangent.T @ activations - gradient, gradient)
    if misfit > SETTLED * least and bool(doubtful.any()):
        trial = _mended(cotangent, gradient, activations, given.unmasked, doubtful)
        following = _solve(trial, gradient)
        if following is not None:
            lower = relative(trial.T @ following - gradient, gradient)
            if lower < (1 - _LEAST_GAIN) * misfit:
                known = known & (trial == cotangent)
                cotangent, activations, misfit = trial, following, lower
    singular = torch.linalg.svdvals(cotangent)
    contradiction = relative((activations @ given.weight.T - outputs) * known, outputs * known)
    error = worst(max(misfit, least) * float(singular[0] / singular[-1]), contradiction)
    # The misfit shows only the part of the noise that the unknowns did not take up.
    images, rows = cotangent.shape
    noise = max(misfit, least) * size(gradient) * (rows / max(rows - images, 1)) ** 0.5
    by_image = noise * torch.linalg.pinv(cotangent.T).norm(dim=1, keepdim=True)
    return Solved(activations, error, LARGEST * by_image.expand_as(activations), cotangent)


def _solve(cotangent: Tensor, gradient: Tensor) -> Tensor | None:
    """The least-squares solution; None where the images' cotangents do not differ enough."""
    singular = torch.linalg.svdvals(cotangent)
    if cotangent.shape[0] > cotangent.shape[1] or not float(singular[-1]) > 1e-9 * float(singular[0]):
        return None
    return torch.linalg.lstsq(cotangent.T, gradient, driver="gelsd").solution


def _mended(cotangent: Tensor, gradient: Tensor, activations: Tensor, unmasked: Tensor, doubtful: Tensor) -> Tensor:
    """The cotangent with units switched that the gradient contradicts.

    Each row of the gradient belongs to one output, so a unit on the wrong side spoils one row. Weighted by their
    misfits, the rows that are right determine the input, and that determines the cotangent of every row: it must be 0
    where a unit was shut, and what it is without the ReLU where it was open.
    """
    if gradient.shape[1] > _MOST_COLUMNS:  # random sums of them tell the rows apart as well
        mixing = torch.randn(
            gradient.shape[1], _MOST_COLUMNS, generator=torch.Generator().manual_seed(0), dtype=gradient.dtype
        )
        gradient, activations = gradient @ mixing, activations @ mixing
    for _ in range(_REWEIGHTINGS):
        misfits = (cotangent.T @ activations - gradient).norm(dim=1)
        weights = 1 / misfits.clamp_min(float(misfits.quantile(_RIGHT)) + 1e-300)
        weights = weights / weights.max()
        following = _solve(cotangent * weights, gradient * weights[:, None])
        if following is None:
            return cotangent
        activations = following
    found = torch.linalg.lstsq(activations.T, gradient.T, driver="gelsd").solution
    is_open = (found - unmasked).abs() < found.abs()
    return torch.where(doubtful, unmasked * is_open, cotangent)

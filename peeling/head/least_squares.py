"""The final layer by least squares: each image's features also where labels repeat."""

from __future__ import annotations

import numpy as np
import scipy
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from ...capture.labels.final_layer import FinalLayer
from ..layers import rounding, worst
from .fixed_point import estimate_error, soft_labels
from .head import Head

Array = NDArray[np.float64]

# Deviation of each start's logits: an untrained network makes nearly the same of all images, a trained one does not.
_SPREADS = (0.1, 0.3, 1.0, 0.1, 0.3, 1.0, 3.0)
_EVALUATIONS = 30, 2000
# Operations of one step, and of all steps from one start: seconds, and less than a minute, on one core.
_STEP, _DESCENT = 2e9, 2e10
# Largest error of a probability at which the equations count as solved.
_SOLVED = 1e-4


def peel_joint_head(layer: FinalLayer, labels: Int[Tensor, " batch"]) -> Head | None:
    """As ``peel_head``, for labels that may repeat; None where this does not apply or finds nothing.

    The fixed point of ``peel_head`` begins with one ``P`` for all images, and two images of one label then stay equal
    for ever. But their rows of ``D = (P - Y) / B`` differ by what the network makes of them, on random weights too, and
    that is far above the rounding of a gradient. So ``G = D^T F`` has rank B, its singular vectors ``G = M R`` span the
    features, ``F = A R`` with a ``B x B`` matrix ``A``, and ``D^T = M A^-1``. What is left are

        softmax(A R W^T + b) - Y = B (M A^-1)^T,    the rows of which add up to B times the bias gradient,

    ``B C + C`` equations for the ``B^2`` entries of ``A``, more than enough where the batch is smaller than the number
    of classes. Solved by Levenberg-Marquardt (MINPACK, through scipy) in float64 from several ``P`` near the mean one,
    which the bias gradient tells. Where the network is very sure of each image it may find no solution, and it is not
    tried where a step would take too long (``C B^5`` above 2e9, as for 24 images and 1,000 classes).

    Args:
        layer: With the captured gradient of the mean cross-entropy.
        labels: The batch's labels.
    """
    batch, classes = len(labels), len(layer.weight)
    if batch >= min(layer.weight.shape) or _operations(batch, classes) > _STEP:
        return None
    gradient, least = layer.weight_gradient, rounding(layer.sent)
    if not bool(torch.isfinite(gradient).all()) or not bool(gradient.any()):
        return None
    left, size, right = torch.linalg.svd(gradient, full_matrices=False)
    if not float(size[batch - 1]) > least * float(size[0]):
        return None  # fewer directions than images
    basis = right[:batch]
    equations = _Equations(
        (left[:, :batch] * size[:batch]).numpy(),
        (basis @ layer.weight.T).numpy(),
        layer.bias.numpy(),
        soft_labels(labels, layer).numpy(),
        None if layer.bias_gradient is None else layer.bias_gradient.numpy(),
    )
    mixing = equations.solve()
    if mixing is None:
        return None
    features = torch.from_numpy(mixing) @ basis
    residual = torch.from_numpy(equations.residual_rows(mixing))
    error = worst(estimate_error(residual, features, layer, least), equations.error(mixing, least))
    return Head(features, residual @ layer.weight, error)


def _operations(batch: int, classes: int) -> float:
    """Of one step, which decomposes the Jacobian."""
    return float(classes * batch**5)


class _Equations:
    """The misfit and its Jacobian by the entries of ``A``.

    Args:
        columns: ``M``, ``(class, batch)``.
        logits: ``R W^T``, ``(batch, class)``.
        bias: ``(class,)``.
        one_hot: ``Y``, ``(batch, class)``.
        total: The bias gradient, or None.
    """

    def __init__(self, columns: Array, logits: Array, bias: Array, one_hot: Array, total: Array | None) -> None:
        self._columns, self._logits, self._bias, self._one_hot = columns, logits, bias, one_hot
        self._total = total

    def solve(self) -> Array | None:
        """``A`` that fits all equations, from the first start that leads there; None when none does."""
        random = np.random.default_rng(0)
        batch, classes = self._one_hot.shape
        # The bias gradient is the mean of P - Y, which gives the mean prediction to begin near.
        mean = self._bias if self._total is None else np.log((self._total + self._one_hot.mean(axis=0)).clip(1e-6))
        evaluations = int(min(max(_DESCENT / _operations(batch, classes), _EVALUATIONS[0]), _EVALUATIONS[1]))
        for spread in _SPREADS:
            probabilities = scipy.special.softmax(mean + spread * random.standard_normal((batch, classes)), axis=1)
            rows = (probabilities - self._one_hot) / batch
            start = np.linalg.lstsq(rows.T, self._columns, rcond=None)[0]
            try:
                found = scipy.optimize.least_squares(
                    self.misfit,
                    start.ravel(),
                    self.jacobian,
                    method="lm",
                    max_nfev=evaluations,
                    ftol=1e-15,
                    xtol=1e-15,
                )
            except (np.linalg.LinAlgError, ValueError):
                continue  # the descent came to a singular A, or to numbers that are not finite
            if float(np.abs(found.fun).max()) < _SOLVED:
                return np.asarray(found.x).reshape(batch, batch)
        return None

    def error(self, mixing: Array, least: float) -> float:
        """Relative error of ``A``: the misfit, or what rounding makes of it, through the flattest direction."""
        flattest = float(np.linalg.svd(self.jacobian(mixing.ravel()), compute_uv=False)[-1])
        misfit = float(np.linalg.norm(self.misfit(mixing.ravel())))
        misfit = max(misfit, least * len(mixing) * float(np.linalg.norm(self.residual_rows(mixing))))
        return misfit / flattest / float(np.linalg.norm(mixing)) if flattest > 0 else float("inf")

    def residual_rows(self, mixing: Array) -> Array:
        """``D = (M A^-1)^T``."""
        return np.asarray(np.linalg.solve(mixing.T, self._columns.T))

    def misfit(self, flat: Array) -> Array:
        """``softmax(A R W^T + b) - Y - B D``, then ``B`` times the misfit of the bias gradient."""
        batch = len(self._one_hot)
        mixing = flat.reshape(batch, batch)
        rows = self.residual_rows(mixing)
        found = scipy.special.softmax(mixing @ self._logits + self._bias, axis=1) - self._one_hot - batch * rows
        parts = [found.ravel()]
        if self._total is not None:
            parts.append(batch * (rows.sum(axis=0) - self._total))
        return np.concatenate(parts)

    def jacobian(self, flat: Array) -> Array:
        """Of the misfit: ``dP = (diag p - p p^T) (dA R W^T)`` row by row, and ``dD = -A^-T dA^T D``."""
        batch, classes = self._one_hot.shape
        mixing = flat.reshape(batch, batch)
        inverse, rows = np.linalg.inv(mixing).T, self.residual_rows(mixing)
        probabilities = scipy.special.softmax(mixing @ self._logits + self._bias, axis=1)
        # Entry (j, k) of A moves D by -A^-T[:, k] D[j, :].
        moved = -np.einsum("ik,jc->icjk", inverse, rows)
        by_rows = -batch * moved
        mean = probabilities @ self._logits.T
        for image in range(batch):
            slope = probabilities[image][:, None] * (self._logits.T - mean[image])
            by_rows[image, :, image, :] += slope
        parts = [by_rows.reshape(batch * classes, batch * batch)]
        if self._total is not None:
            parts.append(batch * moved.sum(axis=0).reshape(classes, batch * batch))
        return np.concatenate(parts)

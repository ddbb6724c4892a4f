"""The final fully connected layer: each image's features from the batch's averaged gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ...capture.labels.final_layer import FinalLayer
from ..layers import rounding, worst
from .head import Head

_ITERATIONS = 500
_SETTLED = 1e-12
# Below this estimated error there is no need to try another iteration.
_CONVERGED = 1e-4
# What is left of a gradient by rounding or noise is up to so many times what is left in directions of no image.
_NOISES = 30.0


def peel_head(layer: FinalLayer, labels: Int[Tensor, " batch"]) -> Head:
    """Each image's input to the final linear layer, where labels are known and differ.

    The layer's weight gradient is ``D^T F`` with one row of ``D = (P - Y) / B`` and of the features ``F`` per image,
    ``P = softmax(F W^T + b)``, ``Y`` one-hot. Given ``P`` this is a linear system for ``F``, and ``F`` gives ``P``
    again: the fixed point of the two is found by iteration from the uniform ``P``. ``D`` has rank at most one less
    than the number of classes, so a batch must be smaller than that. For one image this is the first step of R-GAP
    (Zhu & Blaschko, ICLR 2021); the row space of ``D`` is what makes it work for a batch.

    The bias gradient is the sum of ``D``'s rows: for a single image ``D`` itself, for more a constraint on every step
    and on the size of each row. Without it the softmax alone has to tell the size: another ``P`` may fit as well where
    an image's probability lies on its label and one other class, or where the batch has only one image less than there
    are classes.

    Args:
        layer: With the captured gradient of the mean cross-entropy.
        labels: The batch's labels.
    """
    one_hot, sums = soft_labels(labels, layer), layer.bias_gradient
    heads = []
    for total in [None] if sums is None else [len(labels) * sums, None]:
        heads.append(_iterate(layer, one_hot, total))
        if heads[-1].error < _CONVERGED:
            break
    return min(heads, key=lambda head: head.error)


def soft_labels(labels: Int[Tensor, " batch"], layer: FinalLayer) -> Float[Tensor, "batch class"]:
    """What the layer's outputs are compared with: ``(1 - s) y + s / K``, on the CPU in float64."""
    classes, smoothing = len(layer.weight), layer.smoothing
    one_hot = F.one_hot(labels.cpu(), classes).double()
    return (1 - smoothing) * one_hot + smoothing / classes if smoothing else one_hot


def _iterate(layer: FinalLayer, one_hot: Float[Tensor, "batch class"], total: Float[Tensor, " class"] | None) -> Head:
    """The fixed point; with ``total``, each step is shifted so that the rows of ``P - Y`` add up to it."""
    weight, gradient, batch = layer.weight, layer.weight_gradient, len(one_hot)
    least = rounding(layer.sent)
    probabilities = torch.full_like(one_hot, 1 / len(weight))
    previous_change, damping = float("inf"), 1.0
    for _ in range(_ITERATIONS):
        features = solve_features((probabilities - one_hot) / batch, gradient)
        found = (features @ weight.T + layer.bias).softmax(dim=1)
        following = found if total is None else found + (total - (found - one_hot).sum(dim=0)) / batch
        update = following - probabilities
        change = float(update.abs().max())
        if change < _SETTLED or change != change:
            break
        # A batch the model knows well makes the plain iteration overshoot.
        damping = max(0.05, damping * 0.7) if change > previous_change else min(1.0, damping * 1.05)
        probabilities = probabilities + damping * update
        previous_change = change
    contradiction = float((found - probabilities).norm() / (probabilities - one_hot).norm())
    residual = (probabilities - one_hot) / batch
    error = estimate_error(residual, features, layer, worst(change, contradiction, least))
    if layer.bias_gradient is None:
        error *= _contradiction(residual, features, gradient, least)
        spread = float(probabilities.min()) * len(weight)
        error = error / min(1.0, spread) if batch < len(weight) - 1 and spread > 0 else float("inf")
    return Head(features, residual @ weight, error)


def _contradiction(residual: Tensor, features: Tensor, gradient: Tensor, least: float) -> float:
    """1 where what is left of the gradient may be noise; else by how much it is more than that.

    Noise leaves about as much in the directions that the images do not span as in those they do. A gradient that
    consists of one direction per image and yet does not fit is that of another loss, or is scaled.
    """
    noise = float(torch.linalg.svdvals(gradient)[len(residual) :].norm())
    left = float((residual.T @ features - gradient).norm())
    return max(1.0, left / (_NOISES * max(noise, least * float(gradient.norm()), 1e-300)))


def solve_features(residual: Float[Tensor, "batch class"], gradient: Float[Tensor, "class feature"]) -> Tensor:
    """The least-squares features behind ``gradient = residual^T features``."""
    return torch.linalg.lstsq(residual.T, gradient, driver="gelsd").solution


def estimate_error(
    residual: Float[Tensor, "batch class"],
    features: Float[Tensor, "batch feature"],
    layer: FinalLayer,
    least: float,
) -> float:
    """The misfit of the captured gradient, amplified by the worst conditioned image."""
    if not bool(torch.isfinite(features).all()):
        return float("inf")
    singular = torch.linalg.svdvals(residual)
    if len(residual) >= residual.shape[1] or float(singular[-1]) <= 1e-9 * float(singular[0]):
        return float("inf")
    gradient, exact = layer.weight_gradient, layer.bias_gradient
    misfit = float((residual.T @ features - gradient).norm() / gradient.norm())
    if exact is not None:
        misfit = worst(misfit, float((residual.sum(dim=0) - exact).norm() / exact.norm()))
    return worst(misfit, least) * float(singular[0] / singular[-1])

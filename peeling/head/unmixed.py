"""The final layer of images that `unmix` has told apart: how long their features are, and how much the client sent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...capture import OneLook, Unmixed
from ...capture.labels.final_layer import FinalLayer
from ..layers import LARGEST, SHOWN_UP_TO, relative, worst
from .head import Head, ScaledHead

_STEPS = 12
_FEWEST_CLASSES = 3
_LEAST_REST = 1e-12
# What shows clipping: a factor that differs from 1 by so many deviations, and by so much, and lowers the misfit so far.
_DEVIATIONS, _LEAST_CLIPPING, _BETTER = 10.0, 0.01, 0.03


@dataclass(frozen=True)
class _Fit:
    """``softmax(c a + b) - y = k r``, image by image."""

    length: Float[Tensor, " image"]
    """c"""
    factor: Float[Tensor, " image"]
    """k"""
    error: Float[Tensor, " image"]
    """Relative deviation of c."""
    misfit: Float[Tensor, " image"]
    """Length of what is left."""


def peel_unmixed_head(
    layer: FinalLayer,
    labels: Int[Tensor, " batch"],
    scaled: bool = True,
    look: OneLook | None = None,
    copies: Int[Tensor, " batch"] | None = None,
) -> ScaledHead | None:
    """As ``peel_head`` and ``peel_scaled_head``, for any labels and state of training, where the layer reads a ReLU.

    ``unmix`` gives each image's features f and its row r of the gradient, both up to a number, and with them its label
    y. What is left is one image's ``softmax(c W f + b) - y = k r`` with two unknowns: the length c of its features, and
    k, which is B / c unless clipping left the image a factor s: then B / (s c). Away from the label,
    ``log r - b = c W f + constant``: a straight line, whose slope begins a few Gauss-Newton steps.

    Args:
        layer: With the captured gradient of the mean cross-entropy; at least three classes. The bias gradient is not
            fitted, but must be the sum of all rows.
        labels: The batch's labels, in any order. None is returned where they are others than those found.
        scaled: Allow for clipping.
        look: At the layer, where others ask it too.
    """
    batch, classes, shift = len(labels), len(layer.weight), layer.bias
    if classes < _FEWEST_CLASSES:
        return None
    found = (look or OneLook()).unmix(layer.sent, batch, layer.smoothing)
    if found is None or not torch.equal(found.labels.sort().values, labels.cpu().sort().values):
        return None
    order = torch.empty_like(found.labels)
    order[labels.cpu().argsort(stable=True)] = found.labels.argsort(stable=True)
    known = torch.ones(batch, dtype=found.rows.dtype)
    if copies is not None:
        known[order] = batch * copies.to(known) / int(copies.sum())
    logits = found.features @ layer.weight.T
    spread_out = layer.smoothing / classes
    fit = _fit(logits, shift, found.rows, found.labels, batch / known, spread_out)
    free = _fit(logits, shift, found.rows, found.labels, None, spread_out)
    scales = batch / (free.factor * free.length)
    differs = (scales / known - 1).abs() > (_DEVIATIONS * free.error).clamp_min(_LEAST_CLIPPING)
    if bool((differs & (free.misfit < _BETTER * fit.misfit)).any()):
        if not scaled:
            return None
        fit = free
    else:
        scales = known
    features, noise = fit.length[:, None] * found.features, fit.length * found.noise
    spread = found.noise * layer.weight.shape[1] ** 0.5  # relative: the features' length is 1
    error = worst(*(fit.error.hypot(2 * spread).hypot(found.error)).tolist())
    rows = found.rows / fit.length[:, None]
    sent = layer.bias_gradient
    if sent is not None:
        error = worst(error, relative(rows.sum(dim=0) - sent, sent))
    head = Head(
        features[order],
        (rows @ layer.weight)[order],
        error,
        2 * (-features).amax(dim=1).maximum(LARGEST * noise)[order, None] if error <= SHOWN_UP_TO else None,
    )
    return ScaledHead(head, scales[order])


def _fit(
    logits: Float[Tensor, "image class"],
    bias: Float[Tensor, " class"],
    rows: Float[Tensor, "image class"],
    labels: Int[Tensor, " image"],
    product: Float[Tensor, " image"] | None,
    spread_out: float,
) -> _Fit:
    """Gauss-Newton in the logarithms of c and k; with ``product``, the known value of c k, in that of c alone.

    ``spread_out`` is what smoothing gives to every class: then ``softmax(c a + b) - (1 - s) y - s / K = k r``.
    """
    own = torch.zeros_like(rows).scatter(1, labels[:, None], 1.0)
    length = _slope(logits, bias, _raised(rows, own, spread_out), own)
    factor = _match(length, logits, bias, rows, own, spread_out) if product is None else product / length
    for _ in range(_STEPS):
        misfit, by_length = _misfit(length, factor, logits, bias, rows, own, spread_out)
        by_factor = -factor[:, None] * rows
        if product is None:
            steps, error = _two(by_length, by_factor, misfit)
            length, factor = length * steps[:, 0].exp(), factor * steps[:, 1].exp()
        else:
            slope = by_length - by_factor
            square = slope.square().sum(dim=1).clamp_min(1e-300)
            step = (-(slope * misfit).sum(dim=1) / square).clamp(-1, 1)
            length, factor = length * step.exp(), factor / step.exp()
            error = misfit.norm(dim=1) / square.sqrt()
    misfit, _ = _misfit(length, factor, logits, bias, rows, own, spread_out)
    return _Fit(length, factor, error, misfit.norm(dim=1))


def _two(by_length: Tensor, by_factor: Tensor, misfit: Tensor) -> tuple[Tensor, Tensor]:
    """Both steps of each image, and the deviation of c."""
    jacobian = torch.stack([by_length, by_factor], dim=2)
    normal = jacobian.transpose(1, 2) @ jacobian
    ridge = 1e-14 * normal.diagonal(dim1=1, dim2=2).sum(dim=1).clamp_min(1e-300)
    inverse = torch.linalg.inv(normal + ridge[:, None, None] * torch.eye(2, dtype=normal.dtype))
    steps = -(inverse @ jacobian.transpose(1, 2) @ misfit[:, :, None])[:, :, 0]
    variance = misfit.square().sum(dim=1)
    return steps.clamp(-1, 1), (variance * inverse[:, 0, 0]).sqrt()


def _slope(logits: Tensor, bias: Tensor, rows: Tensor, own: Tensor) -> Tensor:
    """c of the straight line through ``log r - b`` over ``W f`` away from the label, weighted by r squared."""
    used = (own == 0) & (rows > 0)
    weights = torch.where(used, rows, 0.0).square()
    weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-300)
    heights = torch.where(used, rows.clamp_min(1e-300).log() - bias, 0.0)
    places = logits - (weights * logits).sum(dim=1, keepdim=True)
    heights = heights - (weights * heights).sum(dim=1, keepdim=True)
    slope = (weights * places * heights).sum(dim=1) / (weights * places.square()).sum(dim=1).clamp_min(1e-300)
    return slope.clamp_min(1e-6 * float(slope.abs().max().clamp_min(1e-300)))


def _raised(rows: Tensor, own: Tensor, spread_out: float) -> Tensor:
    """The rows with what smoothing took from them, as large as their entry at the label says."""
    if not spread_out:
        return rows
    at_label = -(own * rows).sum(dim=1, keepdim=True)
    return rows + at_label * spread_out / (1 - (rows.shape[1] - 1) * spread_out)


def _match(length: Tensor, logits: Tensor, bias: Tensor, rows: Tensor, own: Tensor, spread_out: float) -> Tensor:
    """k for a given c, from the probability of all classes but the label."""
    outputs = (length[:, None] * logits + bias).softmax(dim=1)
    rest = ((1 - own) * (outputs - spread_out)).sum(dim=1).clamp_min(_LEAST_REST)
    return rest / ((1 - own) * rows).sum(dim=1).clamp_min(1e-300)


def _misfit(
    length: Tensor, factor: Tensor, logits: Tensor, bias: Tensor, rows: Tensor, own: Tensor, spread_out: float
) -> tuple[Tensor, Tensor]:
    """The misfit, and its derivative by the logarithm of c."""
    outputs = (length[:, None] * logits + bias).softmax(dim=1)
    others = (1 - own) * (outputs - spread_out)
    # p - 1 at the label as the sum of the others: a sure model leaves no digits of it.
    misfit = torch.where(own > 0, -others.sum(dim=1, keepdim=True), others) - factor[:, None] * rows
    mean = (outputs * logits).sum(dim=1, keepdim=True)
    return misfit, length[:, None] * outputs * (logits - mean)


def misfit_at(layer: FinalLayer, found: Unmixed, scaled: bool = False) -> float:
    """How far the images that were told apart are from fitting the softmax, relatively, if labels are smoothed as the
    layer has it.

    Args:
        layer: The final layer.
        found: From ``unmix``.
        scaled: Whether the gradient may be that of a mean up to a factor for each image.
    """
    product = None if scaled else torch.full_like(found.noise, len(found.labels))
    spread_out = layer.smoothing / len(layer.weight)
    fit = _fit(found.features @ layer.weight.T, layer.bias, found.rows, found.labels, product, spread_out)
    size = (fit.factor[:, None] * found.rows).norm(dim=1)
    misfit = float((fit.misfit / size.clamp_min(1e-300)).norm())
    return misfit if misfit == misfit else float("inf")

"""Each image's label and weight in the loss, once its features in front of the final layer are known.

The weight gradient of the final layer is ``D^T F`` with F the features, one row for each image, and D the derivative by
the logits, ``s_i (softmax(z_i) - y_i) / B`` for cross-entropy: s is 1 for the mean, B for the sum, and whatever else
where the client scaled its loss or clipped each image's gradient. F and z follow from what is known, so D is the
solution of a linear system with one equation for each feature. ``softmax(z) - y`` is known but for which class the
label is, so that each class has one factor that fits best, and the class that fits is the label. An image that the
network is sure of has nearly no derivative: where it does not tell its own factor it is given the others'.

Rank: no more images than features, and features that are independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..graph import Graph
from ..kinds import Linear
from .knowledge import Knowledge
from .rule import Setting

# A row of the derivative tells its own factor where the best class leaves at most this share of it.
_TELLS = 0.1
CLEAR = 0.3
"""Up to which `ImageLabels.off` of every image labels are read off."""


@dataclass(frozen=True)
class ImageLabels:
    """One label for each image."""

    labels: Int[Tensor, " image"]
    off: Float[Tensor, " image"]
    """How far ``y`` is from 1 at the label and 0 elsewhere, at most."""
    scales: Float[Tensor, " image"]
    """By what each image's loss counts beside what it would in the mean."""
    derivative: Float[Tensor, "image class"]
    """Of the loss by the logits, as it was sent."""
    by_input: bool = False
    """Whether they are by the derivative at the final layer's input, and not by that layer's gradient."""


def image_labels(setting: Setting, known: Knowledge, smoothing: float = 0.0) -> ImageLabels | None:
    """The labels of the images in the order in which the rules know them; None where the features are not known.

    Args:
        setting: With the captured gradients, of cross-entropy.
        known: With the final layer's input and output.
        smoothing: Of the labels, in [0, 1).
    """
    graph: Graph = setting.graph
    final = graph.by_name[graph.output]
    if not isinstance(final.kind, Linear) or len(final.shape) != 1:
        return None
    features, logits = known.complete(final.inputs[0]), known.complete(final.name)
    gradient = setting.gradient(final.name, "weight")
    if features is None or logits is None or gradient is None or len(features.values) > features.values.shape[1]:
        return None
    derivative = torch.linalg.lstsq(features.values.T, gradient.detach().cpu().double().T, driver="gelsd").solution
    return fit_labels(derivative, logits.values, smoothing)


def fit_labels(
    derivative: Float[Tensor, "image class"], logits: Float[Tensor, "image class"], smoothing: float = 0.0
) -> ImageLabels:
    """The label and the factor of each image by which the derivative by its logits is that of cross-entropy.

    Args:
        derivative: Of the loss of the batch.
        logits: Of each image.
        smoothing: Of the labels, in [0, 1).
    """
    count, classes = derivative.shape
    rows = count * derivative
    expected = logits.softmax(dim=1)[:, None, :] - spread_labels(classes, smoothing).to(rows)
    length = expected.square().sum(dim=2).clamp_min(1e-300)
    factors = (expected * rows[:, None, :]).sum(dim=2).clamp_min(0) / length
    left = (rows[:, None, :] - factors[:, :, None] * expected).norm(dim=2)
    best = left.argmin(dim=1)
    scales, tells = usual_factors(factors, left, rows.norm(dim=1), best)
    away = (rows / scales[:, None])[:, None, :] - expected
    found = torch.where(tells, best, away.abs().amax(dim=2).argmin(dim=1))
    off = away.abs().amax(dim=2).gather(1, found[:, None])[:, 0] / (1 - smoothing)
    return ImageLabels(found, off, scales, derivative)


def spread_labels(classes: int, smoothing: float) -> Float[Tensor, "class class"]:
    """What the loss takes each class for as a label."""
    return (1 - smoothing) * torch.eye(classes, dtype=torch.float64) + smoothing / classes


def usual_factors(
    factors: Float[Tensor, "image class"],
    left: Float[Tensor, "image class"],
    lengths: Float[Tensor, " image"],
    best: Int[Tensor, " image"],
) -> tuple[Float[Tensor, " image"], Bool[Tensor, " image"]]:
    """The factor of each image, and whether it tells its own: one that does not is given that of the others.

    Args:
        factors: That fit best, by class.
        left: What they leave of the image's derivative.
        lengths: Of these derivatives.
        best: The class that leaves least.
    """
    own = factors.gather(1, best[:, None])[:, 0]
    tells = left.gather(1, best[:, None])[:, 0] <= _TELLS * lengths
    tells = tells & (own > 0)
    usual = own[tells].median() if bool(tells.any()) else torch.ones((), dtype=factors.dtype)
    return torch.where(tells, own, usual), tells

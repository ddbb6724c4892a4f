"""Each image's label, once its features in front of the final layer are known.

The weight gradient of the final layer is ``D^T F`` with F the features, one row for each image, and D the derivative by
the logits, ``(softmax(z) - y) / B`` for the mean cross-entropy. F and z follow from what is known, so D is the solution
of a linear system with one equation for each feature, and ``y = softmax(z) - B D`` shows the label: 1 there and 0
elsewhere. How far it is from that is the check.

Rank: no more images than features, and features that are independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..graph import Graph
from ..kinds import Linear
from .knowledge import Knowledge
from .rule import Setting


@dataclass(frozen=True)
class ImageLabels:
    """One label for each image."""

    labels: Int[Tensor, " image"]
    off: Float[Tensor, " image"]
    """How far ``y`` is from 1 at the label and 0 elsewhere, at most."""


def image_labels(setting: Setting, known: Knowledge) -> ImageLabels | None:
    """The labels of the images in the order in which the rules know them; None where the features are not known.

    Args:
        setting: With the captured gradients, of mean cross-entropy.
        known: With the final layer's input and output.
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
    one_hot = logits.values.softmax(dim=1) - len(derivative) * derivative
    labels = one_hot.argmax(dim=1)
    expected = torch.nn.functional.one_hot(labels, one_hot.shape[1])
    return ImageLabels(labels, (one_hot - expected).abs().amax(dim=1))

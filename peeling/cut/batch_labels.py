"""The labels of one step's images, and its whole gradient, by what is known of a derivative in the middle of a network.

Where batch norm ran on the batch's own statistics, the derivatives by a network's output do not follow from those that
taps gave. With the images and the weights of the step the derivative at the cut is ``J^T (softmax(z) - y) / b``, linear
in the labels: they are the ones with which it is what is known, and every image's share of it has to be the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...capture.losses import ClientLoss
from ..layers import relative
from .places import Cut

# Candidates that are tried: as many passes back through the network behind the cut.
_MOST = 64
# A label counts as one, and others as none, up to this; and what the labels may leave of the derivative.
_CLEAR, _LEFT = 0.2, 0.05
# A factor of the loss that is as near to the expected one is that one.
_EXPECTED = 0.01


@dataclass(frozen=True)
class BatchLabels:
    """Of the images of one step."""

    labels: Int[Tensor, " image"]
    derivative: Float[Tensor, "image output"]
    """Of the step's own loss by the network's output."""
    left: float
    """What they leave of the derivative that is known, relative."""


@dataclass(frozen=True)
class LabelReader:
    """How a client's loss depends on labels: cross-entropy."""

    classes: tuple[int, ...]
    """That may be labels."""
    loss: ClientLoss
    """As the facts have it."""

    def read(
        self, cut: Cut, images: Float[Tensor, "image channel height width"], arriving: Sequence[Tensor]
    ) -> BatchLabels | None:
        """The labels; None where none make the derivative, or there are more candidates than are tried.

        Args:
            cut: With the weights of the step, behind it too.
            images: Of the step, as the model is given them.
            arriving: The derivative of the step's own loss in front of each of the cut's places.
        """
        count, graph = len(images), cut.graph
        if not 0 < count * len(self.classes) <= _MOST:
            return None
        values = {graph.images: images.double().requires_grad_()}
        with torch.enable_grad():
            for node in graph.nodes:
                inputs = [values[name] for name in node.inputs]
                values[node.name] = node.kind.forward(inputs, graph.tensors_of(node))
        output, before = values[graph.output], [values[place.before] for place in cut.places]

        def through(derivative: Tensor) -> Tensor:
            found = torch.autograd.grad(output, before, derivative, retain_graph=True)
            return torch.cat([one.flatten() for one in found])

        target = torch.cat([one.flatten() for one in arriving])
        smoothing = self.loss.smoothing
        probabilities = output.detach().softmax(dim=1) - smoothing / output.shape[1]
        columns = [through(probabilities)]
        for image in range(count):
            for one in self.classes:
                at_label = torch.zeros_like(probabilities)
                at_label[image, one] = 1 - smoothing
                columns.append(through(at_label))
        matrix = torch.stack(columns, dim=1)
        solution = torch.linalg.lstsq(matrix, target[:, None], driver="gelsd").solution[:, 0]
        shares = (-solution[1:] / solution[0]).reshape(count, -1)
        most, place = shares.max(dim=1)
        others = shares.scatter(1, place[:, None], 0.0).abs()
        if not bool(((most - 1).abs() <= _CLEAR).all() and (others <= _CLEAR).all()):
            return None
        labels = torch.tensor(self.classes)[place]
        made = probabilities.clone()
        made[torch.arange(count), labels] -= 1 - smoothing
        expected, through_all = self.loss.factor(count) / count, through(made)
        factor = float((through_all * target).sum() / through_all.square().sum().clamp_min(1e-300))
        if abs(factor / expected - 1) > _LEFT:
            return None
        factor = expected if abs(factor / expected - 1) <= _EXPECTED else factor
        left = relative(factor * through_all - target, target)
        return BatchLabels(labels, factor * made, left) if left <= _LEFT else None

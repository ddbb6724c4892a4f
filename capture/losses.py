"""The losses that the attack can evaluate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .facts import CROSS_ENTROPY, ClientFacts, Reduction

NLL = "nll_loss"
BINARY = "binary_cross_entropy_with_logits"
MSE = "mse_loss"
PerImage = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class KnownLoss:
    """A loss that the attack can evaluate."""

    per_image: PerImage
    """``per_image(outputs, labels, smoothing)``, one number per image; labels are classes, or shares of all classes."""
    elementwise: bool
    """Whether it is a mean over an image's outputs, so that a sum over the batch is one over those too."""
    smooths: bool = False
    """Whether labels can be smoothed."""


def _shares(outputs: Tensor, labels: Tensor) -> Tensor:
    """The labels as what the outputs should be: the number itself for one output, else one-hot."""
    if labels.is_floating_point() and labels.shape == outputs.shape:
        return labels
    if outputs.shape[1] == 1:
        return labels.to(outputs)[:, None]
    return F.one_hot(labels, outputs.shape[1]).to(outputs)


def _cross_entropy(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="none", label_smoothing=smoothing)


def _nll(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    shares = _shares(outputs, labels)
    return -(((1 - smoothing) * shares + smoothing / outputs.shape[1]) * outputs).sum(dim=1)


def _binary(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, _shares(outputs, labels), reduction="none").mean(dim=1)


def _binary_of_probabilities(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return F.binary_cross_entropy(outputs, _shares(outputs, labels), reduction="none").mean(dim=1)


def _mse(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return (outputs - _shares(outputs, labels)).square().mean(dim=1)


def _mse_of_softmax(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return _mse(outputs.softmax(dim=1), labels, smoothing)


KNOWN_LOSSES: Mapping[str, KnownLoss] = {
    CROSS_ENTROPY: KnownLoss(_cross_entropy, elementwise=False, smooths=True),
    NLL: KnownLoss(_nll, elementwise=False, smooths=True),
    BINARY: KnownLoss(_binary, elementwise=True),
    "binary_cross_entropy": KnownLoss(_binary_of_probabilities, elementwise=True),
    MSE: KnownLoss(_mse, elementwise=True),
    "mse_of_softmax": KnownLoss(_mse_of_softmax, elementwise=True),
}
"""By name. Elementwise ones compare with one-hot labels, or, for a single output, with the label as a number."""


@dataclass(frozen=True)
class ClientLoss:
    """The client's loss of a batch, as the facts have it."""

    name: str = CROSS_ENTROPY
    reduction: Reduction = Reduction.MEAN
    scale: float = 1.0
    smoothing: float = 0.0

    @classmethod
    def of(cls, facts: ClientFacts) -> ClientLoss:
        """That of the record. An unknown scale is taken for 1, and a loss that nobody knows for cross-entropy: whoever
        matches with it must allow for either."""
        name = facts.loss.value if facts.loss.value in KNOWN_LOSSES else CROSS_ENTROPY
        smoothing = facts.label_smoothing.value if KNOWN_LOSSES[name].smooths else 0.0
        return cls(name, facts.reduction.value, facts.loss_scale.value or 1.0, smoothing)

    def __call__(
        self,
        outputs: Float[Tensor, "batch output"],
        labels: Tensor,
        weights: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of a batch.

        Args:
            outputs: Of the model.
            labels: One class per image, or the share of each class.
            weights: What each image's loss is multiplied with; None for 1.
        """
        if weights is None and self.name == CROSS_ENTROPY:
            # As the client calls it, so that no digit differs.
            value = F.cross_entropy(outputs, labels, reduction=str(self.reduction), label_smoothing=self.smoothing)
            return value if self.scale == 1 else self.scale * value
        known = KNOWN_LOSSES[self.name]
        losses = known.per_image(outputs, labels, self.smoothing)
        if weights is not None:
            losses = weights.to(outputs) * losses
        if self.reduction is Reduction.MEAN:
            value = losses.mean()
        else:
            value = losses.sum() * (outputs.shape[1] if known.elementwise else 1)
        return value if self.scale == 1 else self.scale * value

    @property
    def elementwise(self) -> bool:
        """Whether a sum over the batch is one over every output of every image too."""
        return KNOWN_LOSSES[self.name].elementwise

    def share(self, images: int, batch: int) -> float:
        """By what the loss of some images of a batch counts in that of the batch."""
        return images / batch if self.reduction is Reduction.MEAN else 1.0

    def factor(self, images: int) -> float:
        """By what the gradient is larger than that of the mean over the batch."""
        return self.scale * (images if self.reduction is Reduction.SUM else 1)


def is_known(name: str) -> bool:
    """Whether the attack can evaluate the loss of this name."""
    return name in KNOWN_LOSSES

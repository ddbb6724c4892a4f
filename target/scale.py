"""The scale of the loss, as the final layer's bias gradient shows it.

For the mean of cross-entropy over any batch that gradient is the difference of two distributions over the classes, of
outputs and of labels: its negative entries sum to at least -1, its positive ones to at most 1. A sum over the batch,
accumulated batches or a loss scaler that was not undone go beyond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ..capture import CapturedUpdate, Fact, OneLook, Reduction, as_gradient, is_one_step, read
from ..capture.labels.counts import absent_feature
from ..capture.labels.final_layer import FinalLayer
from ..peeling import common_scale
from .final_layer import softmax_layer
from .finding import Finding

_BY_PEELING = "the final layer's features"
# A factor this near to the number of images is that of a sum.
_SUM = 1e-3
# Rounding beyond the bound.
_BEYOND = 1.01
# Fewer classes without an image do not tell a scale, nor do classes that disagree by more than this factor.
_FEWEST_CLASSES, _AGREEING = 3, 1.3
# Scales nearer to 1 are within the error of reading them.
_LEAST = 1.3
# A scale is believed where it turns the labels' counts into whole numbers, to within so much, that they were not.
_NEAR, _BETTER = 0.25, 0.5


@dataclass(frozen=True)
class ScaleEvidence:
    """That the gradient is not that of the mean."""

    reach: float
    """What the bias gradient's positive entries sum to, or the negative ones, whichever is more."""
    estimate: float | None
    """How many times too large it looks; None where it only cannot be 1."""

    @property
    def proven(self) -> bool:
        """Whether no mean has such a gradient."""
        return self.reach > _BEYOND


def scale_evidence(
    layer: FinalLayer, labels: Int[Tensor, " batch"] | None = None, smoothing: float = 0.0
) -> ScaleEvidence | None:
    """What speaks against the gradient being that of the mean; None where nothing does.

    Args:
        layer: The final layer, with a gradient that is taken for that of the mean.
        labels: The batch's, where they are known; without them only what is proven counts.
        smoothing: Of the labels.
    """
    gradient = layer.bias_gradient
    if gradient is None or not layer.clean:
        return None
    reach = float(torch.maximum(gradient.clamp_min(0).sum(), -gradient.clamp_max(0).sum()))
    present = gradient < 0
    if labels is not None:
        present = torch.zeros_like(present).index_fill(0, labels.cpu(), True)
    estimate = _estimate(layer, present)
    if reach > _BEYOND:
        return ScaleEvidence(reach, estimate)
    # Smoothed labels take from the classes without an image what a scale would.
    if (
        labels is None
        or smoothing
        or estimate is None
        or 1 / _LEAST < estimate < _LEAST
        or not _explains(layer, labels, estimate)
    ):
        return None
    return ScaleEvidence(reach, estimate)


def _estimate(layer: FinalLayer, present: Bool[Tensor, " classes"]) -> float | None:
    """By the outputs for classes without an image: those sent over those of the mean feature that they show."""
    gradient = layer.bias_gradient
    assert gradient is not None
    absent = ~present & (gradient > 0)
    feature = absent_feature(layer, present)
    if feature is None or int(absent.sum()) < _FEWEST_CLASSES:
        return None
    ratios = gradient[absent] / layer.probabilities(feature)[absent].clamp_min(1e-300)
    if float(ratios.max()) > _AGREEING * float(ratios.min()):
        return None
    return float(ratios.median())


def _explains(layer: FinalLayer, labels: Int[Tensor, " batch"], scale: float) -> bool:
    """Whether the labels' counts follow from the gradient over the scale, and not from the gradient as it is."""
    gradient, count = layer.bias_gradient, len(labels)
    feature = absent_feature(layer, torch.zeros(len(layer.bias), dtype=torch.bool).index_fill(0, labels.cpu(), True))
    assert gradient is not None
    if feature is None:
        return False
    outputs, counts = layer.probabilities(feature), labels.cpu().bincount(minlength=len(layer.bias))
    scaled, plain = (float((count * (outputs - gradient / factor) - counts).abs().max()) for factor in (scale, 1.0))
    return scaled < _NEAR and scaled < _BETTER * plain


def check_scale(
    update: CapturedUpdate,
    model: nn.Module,
    labels: Int[Tensor, " batch"] | None = None,
    look: OneLook | None = None,
) -> Finding:
    """Whether the reduction and the scale of the loss can be as the facts have them; otherwise the scale is open.

    Args:
        update: What the client sent.
        model: The server's model.
        labels: The batch's, where they are known.
        look: At the final layer, where others ask it too.
    """
    facts, local = update.facts, update.local
    if facts.loss_scale.value is None or (local is not None and local.learning_rate is None):
        return Finding()
    if not is_one_step(update):
        return Finding()
    plain = as_gradient(update, model)
    layer = softmax_layer(plain, model, look or OneLook())
    evidence = None if layer is None else scale_evidence(layer, labels, facts.label_smoothing.value)
    clips = any(one.name in ("clip", "dp_sgd") for one in update.defences)
    if evidence is None or (clips and not evidence.proven):
        return Finding()
    sentence = _sentence(evidence, update)
    name = "loss_scale" if local is None else "learning_rate"
    if local is not None:
        return Finding(contradictions={name: sentence})
    told = not facts.loss_scale.assumed and not facts.reduction.assumed
    return Finding(
        facts={name: read(None, "the final layer's bias gradient")},
        contradictions={name: sentence} if told else {},
        messages=(f"{sentence[0].upper()}{sentence[1:]}; unless peeling finds it, one common factor is left open.",),
    )


def _sentence(evidence: ScaleEvidence, update: CapturedUpdate) -> str:
    about = "" if evidence.estimate is None else f", and it looks {evidence.estimate:.3g} times as large as that of it"
    stated = f"the {update.facts.reduction.value} over {update.image_count} images that the facts state"
    if evidence.proven:
        return (
            f"the final layer's bias gradient has entries of one sign that sum to {evidence.reach:.3g}, and for "
            f"{stated} they cannot sum to more than 1{about} (a sum in place of a mean, accumulated batches, a loss "
            "scaler that was not undone)"
        )
    return f"the final layer's gradient does not fit {stated}{about} (divided twice, or clipped as a whole)"


def found_scale(scales: Sequence[float], update: CapturedUpdate) -> Finding:
    """What the images' factors, as peeling found them, say of the facts.

    Args:
        scales: One for each image, beside what the facts state; empty where there is none.
        update: What the client sent, with the facts so far.
    """
    clips = any(one.name in ("clip", "dp_sgd") for one in update.defences)
    if not scales or clips:
        return Finding()
    factor = common_scale(scales)
    if factor is None:
        sentence = (
            f"by the final layer the images count {min(scales):.3g} to {max(scales):.3g} times what they would, as "
            "where each image's gradient is clipped"
        )
        return Finding(contradictions={"defences": sentence})
    facts = update.facts
    stated = facts.loss_scale.value or 1.0
    found: dict[str, Fact[Any]] = {"loss_scale": read(factor * stated, _BY_PEELING)}
    if facts.reduction.value is Reduction.MEAN and abs(factor * stated / update.image_count - 1) < _SUM:
        found = {"reduction": read(Reduction.SUM, _BY_PEELING), "loss_scale": read(1.0, _BY_PEELING)}
    return Finding(facts=found, resolved=frozenset({"loss_scale", "reduction"}))


def confirmed_loss(update: CapturedUpdate) -> Finding:
    """The facts on the loss that nobody told, where the final layer fitted together with them: they are read then.

    Args:
        update: What the client sent, whose final layer was solved as the facts have the loss.
    """
    names = ("loss", "reduction", "loss_scale", "label_smoothing")
    facts = {name: getattr(update.facts, name) for name in names}
    return Finding(
        facts={name: read(fact.value, _BY_PEELING) for name, fact in facts.items() if fact.assumed},
    )

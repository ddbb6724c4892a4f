"""The client's learning rate, where the server does not know it, from the weight delta of the final layer."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..facts import Penalty, assumed
from ..local_training import LocalTraining
from ..pseudo_gradient import as_gradient, gradient_shares
from ..update import CapturedUpdate
from .counts import absent_feature
from .final_layer import FinalLayer, LabelError
from .one_look import OneLook

# The search for the rate begins at the rate of a single step and grows by this factor, so many times at most.
_GROWTH = 1.05
_GROWTHS = 100
_BISECTIONS = 40


def estimate_learning_rate(update: CapturedUpdate, model: nn.Module, look: OneLook | None = None) -> float:
    """The learning rate with which the final layer's delta has the size that cross-entropy gives it.

    For a class k that none of the images has, ``dL/db_k`` is the mean softmax output ``mean(p_k)``, and the class's row
    of ``dL/dW`` over it is the mean feature f, whatever the learning rate is. ``softmax(W f + b)_k`` then estimates
    ``mean(p_k)``, and the delta over it is the learning rate times the number of steps. As steps teach the model which
    classes do not occur, ``p_k`` falls; the final layer's steps are retraced on f to take that into account.

    It is as good as ``softmax(mean)`` stands for ``mean(softmax)``, and as the features stay what they are while the
    layers before them learn. A layer without bias, or a batch in which every class occurs, tells no scale.

    Args:
        update: A weight delta.
        model: The server's model.
        look: At the final layer, where others ask it too.

    Raises:
        LabelError: The update does not determine it, in one sentence.
    """
    local = update.local
    assert local is not None
    unknown = {"learning_rate": assumed(1.0), "weight_decay": assumed(0.0), "penalty": assumed(Penalty())}
    unit = as_gradient(update.stating(**unknown), model)
    layer = (look or OneLook()).final_layer(unit, model)
    if layer.bias_gradient is None:
        raise LabelError(
            "the learning rate is not known, and without a bias in the final layer it cannot be estimated; give it"
        )
    present = layer.present
    feature, absent = absent_feature(layer, present), (layer.bias_gradient > 0) & ~present
    if feature is None:
        raise LabelError(
            "the learning rate is not known, and it can only be estimated where some class has no image among the "
            "client's; give it"
        )
    moved = float(layer.bias_gradient[absent].sum())
    rate = moved / float(layer.probabilities(feature)[absent].sum())

    def simulated(rate: float) -> float:
        return rate * _absent_output(layer, feature, present, absent, rate, local, update.image_count)

    low = high = rate
    for _ in range(_GROWTHS):
        if simulated(high) >= moved:
            break
        low, high = high, high * _GROWTH
        if simulated(high) < simulated(low):  # a larger rate moves the weights less: they have learnt all there is
            return low
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if simulated(middle) < moved else (low, middle)
    return high


def _absent_output(
    layer: FinalLayer,
    feature: Float[Tensor, " features"],
    present: Bool[Tensor, " classes"],
    absent: Bool[Tensor, " classes"],
    rate: float,
    local: LocalTraining,
    image_count: int,
) -> float:
    """The softmax output of the absent classes, as it enters the mean gradient of the local steps of the final layer
    on one feature. Images are spread evenly over the classes that are present."""
    shares = gradient_shares(local, image_count)
    labels = present.double() / present.sum().clamp_min(1)
    logits = layer.weight @ feature + layer.bias
    size = float(feature.square().sum()) + 1
    velocity, whole = torch.zeros_like(logits), 0.0
    for share in shares:
        outputs = logits.softmax(dim=0)
        whole += share * float(outputs[absent].sum())
        velocity = local.momentum * velocity + outputs - labels
        logits = logits - rate * size * velocity
    return whole / sum(shares)

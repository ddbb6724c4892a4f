"""The client's learning rate, where the server does not know it, from the weight delta of the final layer."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from .final_layer import LabelError, find_final_layer
from .label_counts import absent_feature
from .pseudo_gradient import as_gradient
from .update import CapturedUpdate


def estimate_learning_rate(update: CapturedUpdate, model: nn.Module) -> float:
    """The learning rate with which the final layer's delta has the size that cross-entropy gives a gradient.

    For a class k that none of the images has, ``dL/db_k`` is the mean softmax output ``mean(p_k)``, and the class's row
    of ``dL/dW`` over it is the mean feature f, whatever the learning rate is. ``softmax(W f + b)_k`` then estimates
    ``mean(p_k)``, and the delta over it (and over the number of steps) is the learning rate.

    It is as good as ``softmax(mean)`` stands for ``mean(softmax)``, and falls short of the truth as the steps teach the
    model which classes do not occur. A layer without bias, or a batch in which every class occurs, tells no scale.

    Args:
        update: A weight delta.
        model: The server's model.

    Raises:
        LabelError: The update does not determine it, in one sentence.
    """
    assert update.local is not None
    unit = as_gradient(replace(update, local=replace(update.local, learning_rate=1.0, weight_decay=0.0)), model)
    layer = find_final_layer(unit, model)
    if layer.bias_gradient is None:
        raise LabelError(
            "the learning rate is not known, and without a bias in the final layer it cannot be estimated; give it"
        )
    feature = absent_feature(layer, layer.present)
    absent = (layer.bias_gradient > 0) & ~layer.present
    if feature is None:
        raise LabelError(
            "the learning rate is not known, and it can only be estimated where some class has no image among the "
            "client's; give it"
        )
    return float(layer.bias_gradient[absent].sum() / layer.probabilities(feature)[absent].sum())

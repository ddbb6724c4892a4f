"""A label rule of the user's own: what it is given, and what it must give back."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ...plugins import Plugin, PluginKind, broken, called, find_plugin
from .final_layer import FinalLayer
from .recovered import RecoveredLabels

_ASSUMPTION = "What the rule itself assumes, which is code of the user's own."


class LabelRule(Protocol):
    """What ``labels=module:callable`` names, or an entry point of ``gradinversion.label_rules``."""

    def __call__(self, layer: FinalLayer, image_count: int) -> RecoveredLabels:
        """The batch's labels.

        Args:
            layer: The final layer with its gradient, in float64 on the CPU. A weight delta comes as the mean gradient
                of its steps, an update of the other sign as it was meant.
            image_count: Images in the batch.

        Returns:
            One label per image, ``(image_count,)`` int64, with confidences in [0, 1], in any order, and in one sentence
            what must hold for them to be right. The report calls the method by the name that the command has.
        """


def by_own_rule(name: str, layer: FinalLayer, image_count: int) -> RecoveredLabels:
    """What a plug-in reads off the final layer, sorted by label.

    Args:
        name: Of the plug-in.
        layer: See `LabelRule`.
        image_count: See `LabelRule`.

    Raises:
        PluginError: It cannot be had, or does not keep its protocol.
    """
    plugin = find_plugin(PluginKind.LABEL_RULE, name)
    found = called(plugin, layer, image_count)
    if not isinstance(found, RecoveredLabels):
        raise broken(plugin, f"returned a {type(found).__name__}; it must return RecoveredLabels")
    labels = _vector(plugin, "labels", found.labels, image_count)
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype is torch.bool:
        raise broken(plugin, f"returned labels of the type {labels.dtype}; they must be whole numbers")
    classes = layer.weight.shape[0]
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise broken(
            plugin,
            f"returned labels from {int(labels.min())} to {int(labels.max())}; the model's classes are 0 to "
            f"{classes - 1}",
        )
    confidence = _vector(plugin, "confidences", found.confidence, image_count).float()
    if not bool(((confidence >= 0) & (confidence <= 1)).all()):
        raise broken(plugin, "returned confidences that are no numbers between 0 and 1")
    labels, order = labels.long().sort(stable=True)
    assumption = str(found.assumption) or _ASSUMPTION
    return RecoveredLabels(labels, confidence[order], name, assumption, tuple(map(str, found.warnings)))


def _vector(plugin: Plugin, what: str, value: Any, image_count: int) -> Tensor:
    if isinstance(value, Tensor) and tuple(value.shape) == (image_count,):
        return value.detach().cpu()
    given = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"as a {type(value).__name__}"
    raise broken(plugin, f"returned {what} {given}; they must be a tensor of shape ({image_count},), one per image")

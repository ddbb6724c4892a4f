"""Units that turn out to be on the other side, and what was derived from them as they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..checksums import error_shown
from ..units import Units
from .channel_sums import channel_sums
from .knowledge import Knowledge, Known
from .rule import Setting

# What a unit is set to that was open and came out at zero or below, in deviations.
_BARELY_OPEN = 0.5


def with_switched(setting: Setting, known: Knowledge, rectifier: str, switched: Tensor) -> Knowledge:
    """With these units on the other side; what was derived from the units as they were is forgotten.

    Args:
        setting: With the captured gradients.
        known: With the rectifier's output, the derivative by it and its units.
        rectifier: Its name.
        switched: Which units, of the shape of its output with the images in front.
    """
    units, output = known.units[rectifier], known.activations[rectifier]
    is_open = units.is_open ^ switched
    doubt = output.deviation.expand_as(output.values)
    least = torch.finfo(torch.float32).eps * output.values.square().mean().sqrt()
    barely = _BARELY_OPEN * doubt.maximum(least)
    held = setting.graph.by_name[rectifier].kind.held(output.values)
    values = torch.where(is_open, output.values.maximum(barely), held)
    fresh = replace(output, values=values, deviation=torch.where(is_open, doubt.maximum(barely), 0.0))
    units = Units(is_open, torch.where(switched, 0.0, units.wrong), units.doubtful)
    unmasked = known.arriving[rectifier].values
    shown = error_shown(channel_sums(setting, rectifier, unmasked), unmasked, units)
    size = float((unmasked * is_open).norm())
    stale = setting.graph.before(setting.graph.by_name[rectifier].inputs[0])
    return replace(
        known.with_activations(rectifier, fresh).with_units(rectifier, units, shown * size if size > 0 else 0.0),
        arriving=_without(known.arriving, stale),
        weights=_but_of(setting, known.weights, stale),
        weights_instead=_but_of(setting, known.weights_instead, stale),
    )


def _but_of(setting: Setting, weights: Mapping[str, Tensor], stale: frozenset[str]) -> Mapping[str, Tensor]:
    """Steps' weights that do not rest on these derivatives."""
    gone = {name for node in setting.graph.nodes if node.name in stale for name in node.tensors.values()}
    return {name: one for name, one in weights.items() if name not in gone}


def _without(arriving: Mapping[str, Known], stale: frozenset[str]) -> Mapping[str, Known]:
    return {name: one for name, one in arriving.items() if name not in stale or one.rule != "derivatives"}

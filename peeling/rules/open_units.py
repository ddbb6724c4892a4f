"""Which units of a rectifier were open: from its output, known up to an error, and by gradients that sum them up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ..checksums import settle
from ..layers import LARGEST
from .channel_sums import channel_sums
from .knowledge import Knowledge
from .rule import Derived, Setting

# What a unit is set to that was open and came out at zero or below, as a share of its uncertainty.
_BARELY_OPEN = 0.1
# What is left, at least, of the odds that a unit was on the other side once sums have settled it: chance settles some.
_LEFT_OF_DOUBT = 0.02


def open_units(setting: Setting, known: Knowledge) -> Iterator[Derived]:
    """Units of each ReLU whose output, and the derivative by it, are known."""
    for node in setting.graph.nodes:
        output, arriving = known.complete(node.name), known.arriving.get(node.name)
        if node.name in known.units or output is None or arriving is None or not arriving.complete:
            continue
        if not float(output.error.max()) <= setting.tolerance:
            continue  # as where an offset far below zero, of dead channels, hides how well the others are known
        uncertainty = LARGEST * output.deviation.expand_as(output.values)
        units = node.kind.units(output.values, uncertainty)
        if units is None:
            continue
        sums = channel_sums(setting, node.name, arriving.values)
        settled = settle(sums, arriving.values, units)
        units = replace(settled.units, wrong=settled.units.wrong.maximum(_LEFT_OF_DOUBT * units.wrong))
        barely = output.values.maximum(_BARELY_OPEN * uncertainty)
        values = torch.where(units.is_open, barely, node.kind.held(output.values))
        deviation = torch.where(units.is_open, output.deviation.expand_as(values), 0.0)
        size = float((arriving.values * units.is_open).norm())
        found = known.with_units(node.name, units, settled.error * size if size > 0 else 0.0)
        found = found.with_activations(node.name, replace(output, values=values, deviation=deviation))
        doubt = {
            "wrong units expected": float(units.wrong.sum()),
            "derivative": settled.error,
            "sums": float(len(sums)),
        }
        yield Derived("open units", node.name, found, doubt, notable=bool(sums))

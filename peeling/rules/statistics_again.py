"""The rule that solves for an input before batch statistics once more, when units behind it were mended.

A unit on the wrong side spoils the equations of its own channel alone, which are left out; but the derivative that
tells the scale of the input passes through all channels (see `statistics_scale`), so that one unit in ten thousand
makes the scale wrong by a hundredth. What the solution leaves shows the unit (`mended_units`); with it on its side
the scale is told anew, before anything rests on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from ..graph import Node
from .batch_statistics import behind_batch_statistics
from .knowledge import Knowledge
from .rule import Derived, Setting
from .statistics_input import RULE, solved_input
from .statistics_reader import told_of

AGAIN = "input before batch statistics, again"

# An input that is known as well as this is left as it is.
_EXACT = 1e-4


def statistics_again(setting: Setting, known: Knowledge) -> Iterator[Derived]:
    """Inputs as they were solved, of which nothing was derived but what is behind, and whose derivatives were mended
    since; each is looked at once for all units that were mended."""
    for value, found in known.activations.items():
        readers = [node for node in setting.graph.readers(value) if behind_batch_statistics(setting.graph, node)]
        mended = known.mended & {node.name for node in readers}
        if found.rule != RULE or value in known.units or not mended:
            continue
        if len(told_of(setting, known, value)) < len(readers):
            continue  # what was forgotten with the units is not derived again yet
        settled = replace(known, mended=known.mended - mended)
        if float(found.error.max()) > _EXACT:
            before = _without(setting, settled, value, readers)
            # By the same derivatives and with the same outcome it is not tried twice.
            behind = [behind_batch_statistics(setting.graph, node) for node in readers]
            given = [known.arriving[node.name] for node in behind if node is not None]
            again = setting.effort.once(AGAIN, value, given, partial(solved_input, setting, before, value))
            if isinstance(again, Derived):
                better = float(again.knowledge.activations[value].error.max()) < float(found.error.max())
                if better:
                    yield replace(again, rule=AGAIN)
                    return
        yield Derived(AGAIN, value, settled)
        return


def _without(setting: Setting, known: Knowledge, value: str, readers: list[Node]) -> Knowledge:
    """What was known before the value was, and what does not rest on it."""
    graph, in_front = setting.graph, set[str]()
    for node in readers:
        in_front |= graph.before(node.name)
    activations = {
        name: one
        for name, one in known.activations.items()
        if name != value and not (one.rule == "forwards" and value in graph.before(name))
    }
    arriving = {name: one for name, one in known.arriving.items() if name not in in_front or one.rule != "derivatives"}
    return replace(known, activations=activations, arriving=arriving)

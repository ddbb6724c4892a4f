"""The rule that gives a convolution's input where batch norm on the batch's own statistics stands behind it.

See `statistics_equations` for the equations, `statistics_fixed_point` for how they are solved, and `statistics_scale`
for the one number that they leave open. Conditions: the derivative behind each batch norm is known, and ``N <= sum of
C_out k^2``, with a stride of two for each class of even and odd places (as in `convolution_input`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ..graph.rectified import is_rectified
from ..layers import sizes
from ..refusals import Refused, Why
from .equations import OVERDETERMINED, operations_of
from .knowledge import Knowledge, Known
from .rule import Derived, Setting
from .statistics_equations import Reader
from .statistics_fixed_point import State, begin, rounds
from .statistics_levels import levelled, levels_unseen
from .statistics_reader import places_of, reader_of, told_of, unknown_inputs
from .statistics_scale import Scale, scale_of

RULE = "input before batch statistics"

# Rounds of the fixed point before the scale is known, after, and with all that it rests on off by its error.
_BEFORE, _AFTER, _AGAIN = 30, 5, 6
# How often the scale is told: eps is held against it.
_SCALED = 2


def statistics_input(setting: Setting, known: Knowledge) -> Iterator[Derived | Refused]:
    """Inputs of convolutions with such a batch norm behind, the smallest first."""
    if setting.steps is not None:
        return  # each step has statistics of its own
    for value, given in unknown_inputs(setting, known):
        yield setting.effort.once(RULE, value, given, partial(solved_input, setting, known, value))


def solved_input(setting: Setting, known: Knowledge, value: str) -> Derived | Refused:
    """One input, or why it is not believed.

    Args:
        setting: With the captured gradients.
        known: With derivatives behind batch norms.
        value: Its name.
    """
    graph, places = setting.graph, places_of(setting, value)
    nodes = told_of(setting, known, value)
    every = [reader_of(setting, known, node) for node in nodes]
    readers = _adding_up(every, places)
    rows, shape = sum(one.rows for one in readers), (setting.image_count, *graph.shape(value))
    if rows < OVERDETERMINED * places:
        return Refused(RULE, value, Why.FEW_EQUATIONS, places, int(rows / OVERDETERMINED))
    if not setting.effort.affords((_BEFORE + _AFTER + _AGAIN) * operations_of(places, rows, shape[1])):
        return Refused(RULE, value, Why.COST, places)
    levels = levels_unseen(readers, (shape[2], shape[3]))
    # Only behind a rectifier a level that is in no equation has a least value.
    state = (
        rounds(readers, begin(readers, shape), levels, _BEFORE) if not levels or is_rectified(graph, value) else None
    )
    scale = None
    for _ in range(_SCALED):
        scale = (
            None
            if state is None
            else scale_of(setting, known, nodes, levelled(state.values, levels, _noise(state))[0], value)
        )
        if state is None or scale is None:
            return Refused(RULE, value, Why.OPEN, places, rows)
        state = replace(state, values=state.values * scale.factor, scale=state.scale * scale.factor)
        state = rounds(readers, state, levels, _AFTER)
    if state is None or scale is None or state.found is None:
        return Refused(RULE, value, Why.OPEN, places, rows)
    found = known.solved(_known(readers, state, levels, scale))
    checks = {"places": places, "equations": rows, "misfit": state.found.misfit, "scale": scale.misfit}
    checks |= {"channels left out": sum(len(r.weight) for r in every) - sum(len(r.weight) for r in readers)}
    worst = max(float(found.error.max()), state.found.misfit, scale.misfit)
    if not worst <= setting.tolerance:
        return Refused(RULE, value, Why.INEXACT, places, rows, error=worst)
    return Derived(RULE, value, known.with_activations(value, found), checks, notable=True)


def _adding_up(readers: list[Reader], places: int) -> list[Reader]:
    """Without the output channels whose derivative has another sum than was sent, where enough are left: beside few
    equations more than unknowns, a unit on the wrong side does not stand out in what these leave."""
    fewer = [one.of_outputs(one.adds_up) for one in readers]
    enough = sum(one.rows for one in fewer) >= OVERDETERMINED * places and all(len(one.weight) for one in fewer)
    return fewer if enough else readers


def _known(readers: Sequence[Reader], state: State, levels: Sequence[Tensor], scale: Scale) -> Known:
    """The input with its errors."""
    assert state.found is not None
    values, doubt = levelled(state.values, levels, _noise(state))
    moved = _moved(readers, state, levels)[:, None, None, None]
    spread = _noise(state).maximum(moved).expand_as(values)
    deviation = (spread.square() + (scale.error * values).square() + doubt.square()).sqrt()
    return Known(values, torch.ones_like(values, dtype=torch.bool), deviation, RULE)


def _noise(state: State) -> Float[Tensor, "image channel height width"]:
    """Deviation of the values by what the equations leave."""
    assert state.found is not None
    count, _, height, width = state.values.shape
    by_place = state.found.amplified[:, None] * state.found.left * state.unit
    return by_place.reshape(count, height, width, -1).permute(0, 3, 1, 2)


def _moved(readers: Sequence[Reader], state: State, levels: Sequence[Tensor]) -> Tensor:
    """By how much each image moves with all that the equations rest on off by its error: root mean square.

    Errors of the derivative show in what is left of the equations, where they are not the length of an image.
    """
    random = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=random, dtype=torch.float64)

    assert state.found is not None
    shaken = []
    for one in readers:
        shaken.append(one.shaken(max(one.rounding, state.found.misfit), one.spread, noise))
    again = rounds(shaken, replace(state, rounds=0), levels, _AGAIN)
    if again is None:
        return torch.full((len(state.values),), torch.inf, dtype=torch.float64)
    before, after = (levelled(one.values, levels, _noise(state))[0] for one in (state, again))
    return sizes(after - before)

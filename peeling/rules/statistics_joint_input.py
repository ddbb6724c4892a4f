"""The rule that gives a convolution's input where batch norm on batch statistics stands behind, by known outputs too.

Where the gradients alone are too few, or just as many as unknowns so that any deviations agree with them, what is known
of the convolutions' outputs is added (see `statistics_joint`): in a stride-2 block of a residual network, of the one
branch what the rectifier let through, and of the other what the block's end did, the first being known.

Entries of gradients and of known outputs have to be 1.1 times those of the input. How many of them are independent is
not counted: what they leave open shows in a second solution that begins far from the first (`statistics_joint_error`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..graph.rectified import is_rectified
from ..refusals import Refused, Why
from .equations import deviant
from .knowledge import Knowledge, Known
from .rule import Derived, Setting
from .statistics_equations import Reader
from .statistics_joint import ITERATIONS, STEPS, Together, joint_operations, solve_together, step_operations
from .statistics_joint_error import AGAIN, apart, noise_between, solved_again, told_entries
from .statistics_levels import all_seen, levelled, levels_unseen
from .statistics_reader import places_of, reader_of, told_of, unknown_inputs
from .statistics_scale import Scale, scale_of

RULE = "input before batch statistics, with outputs"

_OVERDETERMINED = 1.1
# Steps where most is done: without channels that were left out, and each time that the scale is told.
_FEWER, _SCALED = 4, 2
# The least deviation of a place, as a share of the usual one.
_LEAST_LOCAL = 0.3
# A solution that leaves more went astray, and has no scale.
_ASTRAY = 1e-2


def statistics_joint_input(setting: Setting, known: Knowledge) -> Iterator[Derived | Refused]:
    """Inputs of convolutions with such a batch norm behind, the smallest first."""
    if setting.steps is not None:
        return  # each step has statistics of its own
    for value, given in unknown_inputs(setting, known):
        yield setting.effort.once(RULE, value, given, partial(_attempt, setting, known, value))


def _attempt(setting: Setting, known: Knowledge, value: str) -> Derived | Refused:
    graph, places, shape = setting.graph, places_of(setting, value), (setting.image_count, *setting.graph.shape(value))
    nodes = told_of(setting, known, value)
    readers = [reader_of(setting, known, node) for node in nodes]
    told = _Told(readers, [one.adds_up for one in readers])
    equations = int(told.entries / _OVERDETERMINED) // shape[1]
    size = shape[2], shape[3]
    if equations < places or not all(bool(one.is_told.any()) for one in readers) or not all_seen(readers, size):
        return Refused(RULE, value, Why.FEW_EQUATIONS, places, equations)
    # Of an iteration, with its share of what a step takes beside: one that is not made gives that back.
    each = joint_operations(readers, shape[1], places) + step_operations(readers, shape[1], places) / ITERATIONS
    most = (1 + STEPS + (1 + _SCALED) * _FEWER + AGAIN) * ITERATIONS
    if not setting.effort.affords(most * each):
        return Refused(RULE, value, Why.COST, places)
    levels = levels_unseen(readers, size)
    # Only behind a rectifier a level that is in no equation has a least value.
    if levels and not is_rectified(graph, value):
        setting.effort.give_back(most * each)
        return Refused(RULE, value, Why.OPEN, places, equations)
    told, found = _solved(told, shape)
    made, scale = found.iterations, None
    for _ in range(_SCALED if found.misfit <= _ASTRAY else 0):
        scale = scale_of(setting, known, nodes, levelled(found.values, levels)[0], value)
        if scale is None:
            break
        found = solve_together(told.readers, told.heard, shape, found.values * scale.factor, _FEWER)
        made += found.iterations
    if scale is None:
        setting.effort.give_back((most - made) * each)
        return Refused(RULE, value, Why.OPEN, places, equations)
    other = solved_again(told.readers, told.heard, found)
    setting.effort.give_back((most - made - other.iterations) * each)
    result = known.solved(_known(found, other, levels, scale))
    checks = {"places": places, "equations": equations, "misfit": found.misfit, "scale": scale.misfit}
    checks |= {"channels left out": sum(int((~one).sum()) for one in told.heard)}
    worst = max(float(result.error.max()), found.misfit, scale.misfit)
    if not worst <= setting.tolerance:
        return Refused(RULE, value, Why.INEXACT, places, equations, error=worst)
    return Derived(RULE, value, known.with_activations(value, result), checks, notable=True)


@dataclass(frozen=True)
class _Told:
    """The convolutions, and of each the output channels whose gradient counts."""

    readers: Sequence[Reader]
    heard: Sequence[Bool[Tensor, " _"]]

    @property
    def entries(self) -> int:
        """Of gradients and of known outputs."""
        return told_entries(self.readers, self.heard)


def _solved(told: _Told, shape: tuple[int, ...]) -> tuple[_Told, Together]:
    """Once more without channels of which clearly more is left than of most: a unit on the wrong side spoils them."""
    found = solve_together(told.readers, told.heard, shape)
    deviating = [deviant(off, torch.ones_like(off)) for off in found.off]
    pairs = list(zip(told.heard, deviating, strict=True))
    fewer = replace(told, heard=[some & ~off for some, off in pairs])
    if not any(bool((some & off).any()) for some, off in pairs) or fewer.entries < _OVERDETERMINED * prod(shape):
        return told, found
    again = solve_together(told.readers, fewer.heard, shape, found.values, _FEWER)
    return fewer, replace(again, iterations=found.iterations + again.iterations)


def _known(found: Together, other: Together, levels: Sequence[Float[Tensor, " place"]], scale: Scale) -> Known:
    """The input with its errors, by how far the two solutions are apart."""
    values, doubt = levelled(found.values, levels, noise_between(found.values, other, levels))
    moved = apart(values, other, levels)
    local = moved.square().mean(dim=1, keepdim=True).sqrt()
    usual = moved.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    spread = local.maximum(_LEAST_LOCAL * usual).expand_as(values)
    deviation = (spread.square() + (scale.error * values).square() + doubt.square()).sqrt()
    return Known(values, torch.ones_like(values, dtype=torch.bool), deviation, RULE)

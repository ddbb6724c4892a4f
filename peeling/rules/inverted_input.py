"""The rule that gives what enters an inverted block that has more places than its convolutions have channels.

Neither the row space nor the column space of a weight gradient is of the places there. What is known of the block's end
and the gradients of all its parameters determine the input together (`inverted_equations`), although it enters them
through rectifiers of unknown units: by soft rectifiers that grow hard, from zeros or from what a skip has passed on. A
softened equation is off by as much as it is soft, and so is its solution: at the end a handful of units are on the
wrong side, and hard ones mend themselves. Where a stage leaves hardly less than the one before, it is going astray.

Rank: as many known outputs and entries of gradients as 1.1 times the input; that this is enough the solution must show,
by what it leaves of them, and of the gradients of batch norms' weights, which it was not found by; where there are
none of these, nothing is solved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ..conjugate_gradients import conjugate_gradients
from ..graph.cost import operations
from ..kinds import BatchNorm
from ..layers import relative, sizes, worst
from ..refusals import Refused, Why
from .inverted_block import InvertedBlock, find_inverted
from .inverted_equations import Equations
from .knowledge import Knowledge, evenly
from .linearised import Linearised, levenberg_marquardt
from .rule import Derived, Setting

RULE = "inverted block"

_OVERDETERMINED = 1.1
# Softness as a share of what enters a rectifier usually, the weight of gradients against outputs, steps, and iterations
# of conjugate gradients in each.
_STAGES = (
    (0.25, 0.3, 4, 60),
    (0.12, 0.3, 5, 80),
    (0.055, 0.5, 5, 120),
    (0.027, 1.0, 5, 150),
    (0.013, 1.0, 5, 200),
    (0.006, 1.0, 5, 200),
    (0.003, 1.0, 5, 200),
    (0.001, 1.0, 4, 200),
    (0.0, 1.0, 5, 250),
)
# From this softness on a stage has to leave so much less than the one before.
_JUDGED, _FALLS = 0.013, 0.5
# In float64 at the end.
_LAST_STEPS, _LAST_ITERATIONS = 2, 250
# Of one iteration, in runs of the block: back and forth through all of it and its derivative, most of which are
# operations on single numbers.
_RUNS = 70.0
# The stated error, in errors of what it was found by; and the least of all.
_ERRORS, _LEAST_ERROR = 3.0, 5e-7
_SETTLED = 1e-6
# What it may leave of gradients: more is another solution, whose own noise says little of how far off it is.
_LARGEST_MISFIT = 1e-3


def inverted_input(setting: Setting, known: Knowledge) -> Iterator[Derived | Refused]:
    """Inputs of blocks whose ends are known, those with the fewest places first."""
    if setting.steps is not None:
        return
    for block in sorted(find_inverted(setting, known), key=lambda one: math.prod(one.expand.shape[1:])):
        places = setting.image_count * math.prod(block.expand.shape[1:])
        if places <= min(setting.graph.shape(block.entering)[0], block.expand.shape[0]):
            continue  # the column space tells it
        given = (known.activations[block.end], known.arriving[block.end])
        yield setting.effort.once(RULE, block.entering, given, partial(_attempt, setting, known, block))


def _attempt(setting: Setting, known: Knowledge, block: InvertedBlock) -> Derived | Refused:
    value, shape = block.entering, (setting.image_count, *setting.graph.shape(block.entering))
    places = math.prod(shape) // shape[1]
    end, arriving = known.activations[block.end], known.arriving[block.end]
    is_open = known.units[block.end].is_open if block.project is None else None
    equations, exact = (
        Equations(setting, block, end.values, arriving.values, is_open, dtype)
        for dtype in (torch.float32, torch.float64)
    )
    enough = int(equations.count / _OVERDETERMINED) // shape[1]
    if enough < places:
        return Refused(RULE, value, Why.FEW_EQUATIONS, places, enough)
    if not exact.unused:
        # With no gradient to hold it against, a solution may be another one than the input.
        return Refused(RULE, value, Why.OPEN, places, enough)
    if not setting.effort.affords(_operations(setting, block)):
        return Refused(RULE, value, Why.COST, places)
    begun = equations.target if block.skip is not None else torch.zeros(shape)
    found = _annealed(equations, equations.stretched(begun), _usual(setting, block))
    if found is None:
        return Refused(RULE, value, Why.OPEN, places, enough)
    stretched = levenberg_marquardt(
        lambda one: exact.residual(exact.entering(one), 0.0, 1.0), found.double(), _LAST_STEPS, _LAST_ITERATIONS
    )
    entering = exact.entering(stretched)
    told = exact.told(entering, 0.0)
    misfit = worst(*(relative(one - given, given) for one, given in zip(told.gradients, exact.given, strict=True)))
    scales = zip(told.scales, exact.unused, strict=True)
    contradiction = worst(0.0, *(relative(one - given, given) for one, (_, given) in scales))
    other = Equations(setting, block, end.shaken(), arriving.shaken(1), is_open, torch.float64)
    error = _error(exact, other, stretched)
    result = known.solved(evenly(entering, error, RULE))
    largest = worst(float(result.error.max()), misfit, contradiction)
    if not (largest <= setting.tolerance and worst(misfit, contradiction) <= _LARGEST_MISFIT):
        return Refused(RULE, value, Why.INEXACT, places, enough, error=largest)
    checks = {"places": places, "equations": enough, "misfit": misfit, "contradiction": contradiction}
    return Derived(RULE, value, known.with_activations(value, result), checks, notable=True)


def _operations(setting: Setting, block: InvertedBlock) -> float:
    """Of all iterations."""
    graph = setting.graph
    one = operations(graph, [block.end]) - operations(graph, [block.entering])
    iterations = sum(steps * each for _, _, steps, each in _STAGES) + (_LAST_STEPS + 3) * _LAST_ITERATIONS
    return one * setting.image_count * _RUNS * iterations


def _usual(setting: Setting, block: InvertedBlock) -> float:
    """What enters a rectifier usually, by what batch norm promises."""
    found = []
    for nodes in (block.first, block.second):
        node = nodes[-1] if nodes else None
        tensors = setting.graph.tensors_of(node) if node is not None and isinstance(node.kind, BatchNorm) else {}
        if "weight" in tensors and "bias" in tensors:
            found.append(float((tensors["weight"].square() + tensors["bias"].square()).mean().sqrt()))
    return sum(found) / len(found) if found else 1.0


def _annealed(equations: Equations, stretched: Tensor, usual: float) -> Tensor | None:
    """The input to the digits of float32; None where it goes astray."""
    found, last = stretched, math.inf
    for share, weight, steps, iterations in _STAGES:
        softness = share * usual

        def residual(one: Tensor, softness: float = softness, weight: float = weight) -> Tensor:
            return equations.residual(equations.entering(one), softness, weight)

        found = levenberg_marquardt(residual, found, steps, iterations)
        left = float(residual(found).detach().square().sum())
        if 0 < share <= _JUDGED and not left <= _FALLS * last:
            return None
        last = left
    return found


def _error(exact: Equations, other: Equations, stretched: Tensor) -> Tensor:
    """Stated, of each image: what the input would move by, were all that it was found by off by its errors. What is
    known behind the block may be off by no more than what is left of the equations shows, of which there are more than
    the input could make up for."""

    def residual(one: Tensor) -> Tensor:
        return exact.residual(exact.entering(one), 0.0, 1.0)

    entering = exact.entering(stretched)
    with torch.no_grad():
        parts, others = (one.parts(entering, 0.0, 1.0) for one in (exact, other))
    random = torch.Generator().manual_seed(0)
    noise, shaken = list[Tensor](), list[Tensor]()
    for part, instead in zip(parts, others, strict=True):
        left, moved = part.square().mean().sqrt(), (instead - part).square().mean().sqrt()
        noise.append(left * torch.randn(part.shape, generator=random, dtype=part.dtype))
        shaken.append((instead - part) * (_ERRORS * left / moved.clamp_min(1e-300)).clamp_max(1))
    near = Linearised(residual, stretched)
    moves = [
        conjugate_gradients(near.normal, near.back(off), _LAST_ITERATIONS, _SETTLED).solution
        for off in (_joined(noise), _joined(shaken), near.value)
    ]
    size = sizes(entering).clamp_min(1e-300)
    shares = torch.stack([sizes(exact.entering(move)) / size for move in moves])
    return (_ERRORS * shares.square().sum(dim=0).sqrt()).clamp_min(_LEAST_ERROR)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])

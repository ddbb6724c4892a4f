"""The rule that gives a convolution's input, from its weight gradient and the derivative by its output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph import Node
from ..graph.rectified import is_rectified
from ..kinds import Convolution
from ..layers import relative
from ..refusals import Refused, Why
from .equations import (
    OVERDETERMINED,
    GradientEquations,
    affordable,
    gradient_equations,
    most_places,
    operations_of,
    operations_weighed,
    solve,
)
from .joint import Outputs, operations_allowed, solve_jointly
from .knowledge import Knowledge, Known
from .rule import Derived, Setting

RULE = "convolution input"

# A solution by gradients alone whose usual image has a larger error is made again with all that is known. What a single
# image has more than the others is the noise of the gradient over its own small derivatives, as where the network is
# sure of it, and comes out of known outputs as large.
_CLEAN = 1e-4
# So many entries below zero tell how large errors are; each deviation is at least this share of what was estimated.
_MANY, _LEAST_SHOWN = 100, 0.5
# The largest of so many errors, in deviations.
_LARGEST = 4.0


@dataclass(frozen=True)
class _Reader:
    """One convolution that reads the value."""

    node: Node
    kind: Convolution
    equations: GradientEquations | None
    """Where its weight gradient and the derivative by its output are known."""


def convolution_input(setting: Setting, known: Knowledge) -> Iterator[Derived | Refused]:
    """Inputs of convolutions, the smallest first."""
    graph = setting.graph
    wanted = [name for name in (graph.images, *graph.by_name) if _worth_trying(setting, known, name)]
    for value in sorted(wanted, key=lambda name: places_of_value(setting, name)):
        names = [node.name for node in graph.readers(value)]
        given = (known.activations.get(value), *map(known.arriving.get, names), *map(known.activations.get, names))
        yield setting.effort.once(RULE, value, given, partial(_attempt, setting, known, value))
    for node in graph.nodes:
        if node.inputs and known.complete(node.inputs[0]) is None and _is_too_large(setting, known, node):
            assert isinstance(node.kind, Convolution)
            most, places = most_places(node.kind, node.shape[0]), places_of_value(setting, node.inputs[0])
            yield Refused(RULE, node.inputs[0], Why.LARGE, places, most)


def places_of_value(setting: Setting, value: str) -> int:
    """Of all images together, at one value with channels."""
    _, height, width = setting.graph.shape(value)
    return setting.image_count * height * width


def _worth_trying(setting: Setting, known: Knowledge, value: str) -> bool:
    if known.complete(value) is not None or len(setting.graph.shape(value)) != 3:
        return False
    return any(has_equations(setting, known, node) for node in setting.graph.readers(value))


def has_equations(setting: Setting, known: Knowledge, node: Node) -> bool:
    """Whether it is a convolution whose weight gradient and derivative are known, and that is small enough."""
    return _is_affordable(setting, node) and is_told(setting, known, node)


def _is_affordable(setting: Setting, node: Node) -> bool:
    kind = node.kind
    return isinstance(kind, Convolution) and affordable(kind, places_of_value(setting, node.inputs[0]), node.shape[0])


def is_told(setting: Setting, known: Knowledge, node: Node) -> bool:
    """Whether a convolution's weight gradient and the derivative by its output are known."""
    arriving = known.arriving.get(node.name)
    return arriving is not None and arriving.complete and setting.gradient(node.name, "weight") is not None


def _is_too_large(setting: Setting, known: Knowledge, node: Node) -> bool:
    """Whether the equations of a convolution are known, and more than are solved."""
    plain = isinstance(node.kind, Convolution) and node.kind.groups == 1
    return plain and is_told(setting, known, node) and not _is_affordable(setting, node)


def _reader(setting: Setting, known: Knowledge, node: Node, weighed: bool) -> _Reader:
    assert isinstance(node.kind, Convolution)
    found = equations_of(setting, known, node, weighed) if has_equations(setting, known, node) else None
    return _Reader(node, node.kind, found)


def equations_of(setting: Setting, known: Knowledge, node: Node, weighed: bool = False) -> GradientEquations:
    """What a convolution that has them (`has_equations`) says of its input.

    Args:
        setting: With the gradients.
        known: With the derivative by its output.
        node: The convolution.
        weighed: Whether each entry is to have a deviation of its own, where they differ.
    """
    gradient = setting.gradient(node.name, "weight")
    assert isinstance(node.kind, Convolution)
    assert gradient is not None
    height, width = setting.graph.shape(node.inputs[0])[1:]
    arriving = known.arriving[node.name].values
    deviation = setting.deviation(node.name, "weight") if weighed else None
    return gradient_equations(node.kind, (height, width), gradient, arriving, deviation)


def _attempt(setting: Setting, known: Knowledge, value: str) -> Derived | Refused:
    graph = setting.graph
    nodes = [node for node in graph.readers(value) if isinstance(node.kind, Convolution)]
    places, channels = places_of_value(setting, value), graph.shape(value)[0]
    rows = sum(_rows(node) for node in nodes if has_equations(setting, known, node))
    if not setting.effort.affords(operations_of(places, rows, channels)):
        return Refused(RULE, value, Why.COST, places)
    # Of local steps each entry has a deviation of its own, and each channel equations of its own.
    cost = operations_weighed(places, rows, channels)
    weighed = setting.steps is not None and setting.effort.affords(cost)
    return _solved(setting, known, value, [_reader(setting, known, node, weighed) for node in nodes])


def _rows(node: Node) -> int:
    """Equations that a convolution's weight gradient is."""
    assert isinstance(node.kind, Convolution)
    return node.shape[0] * prod(node.kind.kernel)


def _solved(setting: Setting, known: Knowledge, value: str, readers: list[_Reader]) -> Derived | Refused:
    shape = (setting.image_count, *setting.graph.shape(value))
    rectified = is_rectified(setting.graph, value)
    equations = [one.equations for one in readers if one.equations is not None]
    places, rows = places_of_value(setting, value), sum(one.matrix.shape[1] for one in equations)
    outputs = [given for one in readers if (given := _outputs(setting, known, one)) is not None]
    checks: dict[str, float] = {"places": places, "equations": rows}
    best, inexact = None, Why.INEXACT
    why = Why.FEW_EQUATIONS if rows < OVERDETERMINED * places else Why.OPEN
    solution = solve(equations) if rows >= OVERDETERMINED * places else None
    if solution is not None:
        values, deviation = as_maps(solution.values, shape), as_maps(solution.deviation, shape)
        best = shown(Known(values, torch.ones_like(values).bool(), deviation, "gradient"), rectified)
        checks |= {"misfit": solution.misfit, "contradiction": _contradiction(outputs, values)}
        checks |= {"channels left out": solution.left_out}
        equations = [one.of_outputs(kept) for one, kept in zip(equations, solution.kept, strict=True)]
    before = known.activations.get(value) or _nothing(shape)
    unclean = best is None or not float(best.error.median()) <= _CLEAN
    if unclean and _enough_together(equations, outputs, before):
        allowed = operations_allowed(setting.effort.left, places, shape[1], outputs)
        if allowed is not None and setting.effort.affords(2 * allowed):
            joint = solve_jointly(equations, outputs, before, rectified, allowed)
            setting.effort.give_back(max(0.0, 2 * allowed - joint.operations))
            everywhere = torch.ones_like(joint.values).bool()
            found = shown(Known(joint.values, everywhere, joint.deviation, "jointly"), rectified)
            if best is None or float(found.error.max()) < float(best.error.max()):
                best = found
                checks |= {"misfit": joint.gradient_misfit, "contradiction": joint.output_misfit}
        elif best is None:
            why = Why.COST if rows >= OVERDETERMINED * places else Why.JOINT_COST
        else:
            inexact = Why.COST
    if best is None:
        return Refused(RULE, value, why, places, int(rows / OVERDETERMINED))
    worst = max(float(best.error.max()), checks["misfit"], checks["contradiction"])
    if not worst <= setting.tolerance:
        return Refused(RULE, value, inexact, places, rows, error=worst)
    best = known.solved(best)
    found_all = known.with_activations(value, best)
    return Derived(f"{RULE}, {best.rule}", value, found_all, checks, notable=True)


def _nothing(shape: tuple[int, ...]) -> Known:
    zeros = torch.zeros(shape, dtype=torch.float64)
    return Known(zeros, torch.zeros(shape, dtype=torch.bool), zeros, "")


def _enough_together(equations: list[GradientEquations], outputs: list[Outputs], before: Known) -> bool:
    """Whether gradients and known outputs are more than what is not known."""
    available = sum(one.given.numel() for one in equations) + sum(int(one.known.known.sum()) for one in outputs)
    return available >= OVERDETERMINED * int((~before.known).sum())


def as_maps(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rows of one place each, in the shape of a value."""
    batch, channels, height, width = shape
    return (
        rows.reshape(batch, height, width, -1).permute(0, 3, 1, 2).expand(batch, channels, height, width).contiguous()
    )


def _outputs(setting: Setting, known: Knowledge, reader: _Reader) -> Outputs | None:
    """What is known of a convolution's output, without its bias."""
    found = known.activations.get(reader.node.name)
    # Of a weight delta each visit's output was made with weights of its own.
    if found is None or reader.kind.groups != 1 or not bool(found.known.any()) or setting.steps is not None:
        return None
    tensors = setting.graph.tensors_of(reader.node)
    if "bias" in tensors:
        shifted = (found.values - tensors["bias"][:, None, None]) * found.known
        found = Known(shifted, found.known, found.deviation, found.rule)
    return Outputs(reader.kind, tensors["weight"], found)


def _contradiction(outputs: list[Outputs], values: Tensor) -> float:
    """By how much the convolutions' known outputs differ from what this input gives."""
    found = 0.0
    for one in outputs:
        kind, mask = one.kind, one.known.known
        given = F.conv2d(values, one.weight, None, kind.stride, kind.padding, kind.dilation)
        wanted = one.known.values * mask
        found = max(found, relative(given * mask - wanted, wanted))
    return found


def shown(found: Known, rectified: bool) -> Known:
    """What comes out of a rectifier is not negative: where it is, that is error, and its largest tells each image's."""
    if not rectified:
        return found
    factors = []
    for values, deviation in zip(found.values, found.deviation.expand_as(found.values), strict=True):
        below = values < 0
        largest = float((-values / (_LARGEST * deviation.clamp_min(1e-300)))[below].max()) if bool(below.any()) else 0.0
        factors.append(max(largest, _LEAST_SHOWN if int(below.sum()) >= _MANY else 1.0))
    scale = torch.tensor(factors, dtype=torch.float64).reshape(-1, 1, 1, 1)
    return Known(found.values, found.known, found.deviation * scale, found.rule)


def misfits(setting: Setting, known: Knowledge) -> Mapping[str, float]:
    """What every convolution whose input and derivative are known leaves of its weight gradient, relative.

    A solution that fits its own equations is shown wrong here by those of other layers.
    """
    found = {}
    for node in setting.graph.nodes:
        gradient = setting.gradient(node.name, "weight")
        entering = known.complete(node.inputs[0]) if node.inputs else None
        arriving = known.arriving.get(node.name)
        if not isinstance(node.kind, Convolution) or gradient is None or entering is None or arriving is None:
            continue
        tensors = setting.graph.tensors_of(node)
        (ours,) = node.kind.gradients(arriving.values, [entering.values], tensors, ["weight"])
        theirs = gradient.detach().cpu().double()
        found[node.name] = relative(ours - theirs, theirs)
    return found

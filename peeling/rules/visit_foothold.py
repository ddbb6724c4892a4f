"""The rule that begins on a weight delta: a convolution's input and derivative in every visit, each under the weights
of its own step.

Two convolutions in a row, a batch norm and a ReLU between them, both with few enough places: their taps give the visits
twice, and the visits that obey the layers between them under known weights are those of one step (see `visits`).

Rank: ``N = visits H W <= min(C_in, C_out)`` for both; the zeros of the visits must differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from ..graph import Node
from ..graph.rectified import is_rectified
from ..images_apart import tell_apart
from ..kinds import BatchNorm, BatchStatisticsNorm, Convolution, Needs
from ..layers import sizes
from ..local_steps import LocalSteps
from ..refusals import Refused, Why
from ..taps import factor_taps
from ..taps_again import apart_again
from ..taps_corner import factor_balanced_taps
from ..taps_weighted import WeightedTaps, fits_weighted, operations_weighted
from ..visits import Layer, Norm, VisitList, VisitsOrdering
from ..visits_in_batches import BatchesOrdering
from ..visits_seen import visits_seen
from .batch_statistics import behind_batch_statistics
from .knowledge import Knowledge, evenly
from .rule import Derived, Setting
from .tap_foothold import crowded, crowding, has_taps, places_of, rank_of, taps_operations

RULE = "taps"

# Float32 keeps about this of the sums that tell the lengths; nothing is called more exact.
_LEAST_ERROR = 5e-7
# What the lengths may leave of the gradient that they are taken from.
_LARGEST_MISFIT = 0.01


@dataclass(frozen=True)
class VisitPair:
    """Two convolutions, and the batch norm between them."""

    first: Node
    norm: Node
    rectifier: Node
    second: Node


def visit_foothold(setting: Setting, known: Knowledge) -> Iterator[Derived | Refused]:
    """Input and derivative of one convolution in every visit, where nothing is known yet."""
    if setting.steps is None or known.arriving:
        return
    pairs = [pair for node in setting.graph.nodes if (pair := visit_pair(setting, node)) is not None]
    if setting.foothold is not None:
        pairs = [pair for pair in pairs if pair.second.name == setting.foothold]
    pairs.sort(key=lambda pair: (crowding(setting, pair.second), setting.graph.nodes.index(pair.second)))
    for pair in pairs:
        worst = max((pair.second, pair.first), key=lambda one: crowding(setting, one))
        if crowding(setting, worst) > 1:
            yield crowded(setting, worst)
        else:
            yield _taken(setting, setting.steps, known, pair)


def visit_pair(setting: Setting, second: Node) -> VisitPair | None:
    """A convolution with the one in front of it, where both have taps and nothing else lies between."""
    graph = setting.graph
    rectifier = graph.by_name.get(second.inputs[0]) if second.inputs else None
    if rectifier is None or rectifier.kind.needs is not Needs.OUTPUT or not has_taps(setting, second):
        return None
    norm = graph.by_name.get(rectifier.inputs[0])
    first = None if norm is None or not norm.inputs else graph.by_name.get(norm.inputs[0])
    if norm is None or first is None or not isinstance(first.kind, Convolution):
        return None
    by_batch = isinstance(norm.kind, BatchStatisticsNorm)
    # One client's batches show in the derivatives in front of such batch norms alone.
    one_by_one = setting.steps is None or setting.steps.clients > 1 or behind_batch_statistics(graph, second) is None
    if not isinstance(norm.kind, BatchNorm) and (not by_batch or one_by_one):
        return None
    alone = graph.readers(norm.name) == (rectifier,) and graph.readers(first.name) == (norm,)
    plain = first.kind.has_taps and "bias" not in first.tensors and is_rectified(graph, first.inputs[0])
    sent = all(setting.gradient(*one) is not None for one in ((first.name, "weight"), (norm.name, "bias")))
    # Visits of channels in groups would have to be linked from group to group.
    whole = first.kind.groups == 1 and isinstance(second.kind, Convolution) and second.kind.groups == 1
    if not (alone and plain and sent and whole):
        return None
    return VisitPair(first, norm, rectifier, second)


def _taken(setting: Setting, steps: LocalSteps, known: Knowledge, pair: VisitPair) -> Derived | Refused:
    value, places = pair.second.inputs[0], places_of(setting, pair.second)
    nodes = (pair.first, pair.second)
    if not setting.effort.affords(sum(taps_operations(setting, one) for one in nodes)):
        return Refused(RULE, value, Why.COST, places)
    weighed = [_affords_weighted(setting, one) and not _balanced(setting, one) for one in nodes]
    lists = []
    for node, own in zip(nodes, weighed, strict=True):
        found = visits_of(setting, node, weighed=own)
        if found is Why.RANK and (seen := _seen(setting, node)) not in (None, steps.visit_count):
            return Refused(RULE, value, Why.VISITS, steps.visit_count, seen)
        if isinstance(found, Why):
            return Refused(RULE, value, found, places)
        lists.append(found)
    ordering = ordering_of(setting, steps, pair)
    ordered = ordering.ordered(*lists)
    if not ordered.is_clear:
        return Refused(RULE, value, Why.STEPS, places, error=max(ordered.left))
    inverse, misfit, uncertain = ordering.lengths(ordered.back)
    if not misfit <= _LARGEST_MISFIT or not bool((inverse > 0).all()):
        return Refused(RULE, value, Why.LENGTHS, places, error=misfit)
    length_error = uncertain.clamp_min(max(misfit, _LEAST_ERROR))
    error = ordered.back.error.maximum(length_error)
    if not float(error.max()) <= setting.tolerance:
        return Refused(RULE, value, Why.INEXACT, places, error=float(error.max()))
    scaled = ordering.scaled(ordered.back, inverse)
    # Visits that are mixed a little make every later solution a mixture as large, as wrong lengths do, and no misfit
    # shows either.
    found_all = replace(known, lengths=error)
    found_all = found_all.with_activations(value, evenly(scaled.inputs, error, RULE))
    found_all = found_all.with_arriving(pair.second.name, evenly(scaled.cotangents, _mixed(scaled, error), RULE))
    checks = {"places": places, "equations": rank_of(setting, pair.second), "lengths": misfit}
    checks |= {"visits": steps.visit_count, "steps": steps.count, "own step": max(ordered.left)}
    if steps.count > 1:
        checks["other steps"] = min(ordered.next_left)
    return Derived(RULE, value, found_all, checks, notable=True)


def _mixed(visits: VisitList, error: Tensor) -> Tensor:
    """What the derivative of each visit is off by: where the features of one hold a share of another's, this one's
    derivative lacks as large a share of that one's, which is the more the smaller its own is."""
    weight = sizes(visits.inputs) * sizes(visits.cotangents)
    return ((error * weight).max() / weight.clamp_min(1e-300)).maximum(error)


def ordering_of(setting: Setting, steps: LocalSteps, pair: VisitPair) -> VisitsOrdering:
    def layer(node: Node) -> Layer:
        assert isinstance(node.kind, Convolution)
        return Layer(node.kind, setting.graph.tensors_of(node)["weight"])

    shift = setting.gradient(pair.norm.name, "bias")
    assert shift is not None
    assert isinstance(pair.norm.kind, BatchNorm | BatchStatisticsNorm)
    norm = Norm(pair.norm.kind, setting.graph.tensors_of(pair.norm))
    kind = BatchesOrdering if isinstance(pair.norm.kind, BatchStatisticsNorm) else VisitsOrdering
    return kind(steps, layer(pair.first), norm, layer(pair.second), shift.detach().cpu().double())


def _affords_weighted(setting: Setting, node: Node) -> bool:
    """Whether the taps may count each entry by its deviation, on top of what they cost already."""
    gradient = setting.gradient(node.name, "weight")
    assert gradient is not None
    outputs, inputs, height, width = gradient.shape
    places = places_of(setting, node)
    cost = operations_weighted(places, outputs, inputs, height * width)
    return fits_weighted(places, outputs, inputs) and setting.effort.affords(cost)


def visits_of(setting: Setting, node: Node, *, weighed: bool = False) -> VisitList | Why:
    """By the taps of one convolution; `weighed`: by entries that each count by its own deviation, where these are
    right."""
    gradient = setting.gradient(node.name, "weight")
    assert gradient is not None
    size = (node.shape[1], node.shape[2])
    if _balanced(setting, node) and setting.steps is not None:
        factors = factor_balanced_taps(gradient, setting.image_count, size, setting.steps.count)
    else:
        factors = factor_taps(gradient, setting.image_count, size)
    if factors is None:
        return Why.RANK
    weighted = _weighted(setting, node, gradient, size) if weighed else None
    polished = None if weighted is None else weighted.polished(factors)
    if polished is None:
        weighted = None
    factors = polished or factors
    apart = tell_apart(factors)
    if apart is None:
        return Why.ALIKE
    moved, across = apart_again(gradient, apart, setting.image_count, size, weighted=weighted)
    error = apart.error.maximum(moved).maximum(across).clamp_min(3 * factors.misfit)
    return VisitList(_maps(apart.inputs, size), _maps(apart.cotangents, size), error)


def _balanced(setting: Setting, node: Node) -> bool:
    """Whether the derivatives of each batch add up to zero."""
    return behind_batch_statistics(setting.graph, node) is not None


def _weighted(setting: Setting, node: Node, gradient: Tensor, size: tuple[int, int]) -> WeightedTaps | None:
    """None where all entries are known as well."""
    deviation = setting.deviation(node.name, "weight")
    if deviation is None:
        return None
    return WeightedTaps(gradient.detach().cpu().double(), deviation, setting.image_count, size)


def _seen(setting: Setting, node: Node) -> int | None:
    gradient = setting.gradient(node.name, "weight")
    assert gradient is not None
    seen = visits_seen(gradient, (node.shape[1], node.shape[2]), _balanced(setting, node))
    return None if seen is None else seen.visits


def _maps(rows: Tensor, size: tuple[int, int]) -> Tensor:
    return rows.transpose(1, 2).reshape(len(rows), -1, *size).contiguous()

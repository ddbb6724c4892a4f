"""The rule that begins: a convolution's input and the derivative by its output, from its weight gradient alone.

See `tap_solution`; the lengths of the images are taken from a gradient that sums up the derivative in front of the
rectifier before the convolution.

Rank: ``N = B H W <= min(C_in, C_out)``, of each group where the channels are in groups; the zeros of the images must
differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ...capture.labels.unmixing import MOST_IMAGES
from ..graph import Graph, Node
from ..kinds import BatchNorm, Convolution, CopiedPadding, Identity, Needs
from ..refusals import Refused, Why
from ..tap_solution import NoTaps, solve_taps
from ..taps import MOST_PLACES
from ..taps_in_groups import Front
from .batch_statistics import behind_batch_statistics
from .channel_sums import shift_gradients
from .knowledge import Knowledge, evenly
from .rule import Derived, Setting

# Float32 keeps about this of the sums that tell the lengths; nothing is called more exact.
_LEAST_ERROR = 5e-7


def tap_foothold(setting: Setting, known: Knowledge) -> Iterator[Derived | Refused]:
    """Input and derivative of one convolution, where nothing is known yet; the one with the fewest places first."""
    if known.arriving or setting.steps is not None:
        return
    candidates = [node for node in setting.graph.nodes if has_taps(setting, node) and _tells_apart(setting, node)]
    if setting.foothold is not None:
        candidates = [node for node in candidates if node.name == setting.foothold]
    candidates.sort(key=lambda node: (crowding(setting, node), setting.graph.nodes.index(node)))
    for node in candidates:
        if few_enough(setting, node):
            yield _taken(setting, known, node)
    if candidates and not few_enough(setting, candidates[0]):
        yield crowded(setting, candidates[0])
    if not candidates:
        yield from _barred(setting)


def _barred(setting: Setting) -> Iterator[Refused]:
    """Why no convolution can be taken apart, by the last one that would have had taps otherwise."""
    graph = setting.graph
    for node in reversed(graph.nodes):
        kind = node.kind
        if not isinstance(kind, Convolution):
            continue
        sent = setting.gradients.get(graph.gradient_of(node, "weight") or "")
        if kind.has_taps and sent is not None and not bool(sent.any()):
            yield Refused("taps", node.inputs[0], Why.FLAT)
            return
        if max(kind.kernel) > 1 and _would_have_taps(setting, node):
            yield Refused("taps", node.inputs[0], Why.PADDED)
            return


def _would_have_taps(setting: Setting, node: Node) -> bool:
    """Whether it is for the padding of a convolution's input, by copies of it, that it has no taps."""
    graph, padding = setting.graph, setting.graph.by_name.get(node.inputs[0])
    if padding is None or not isinstance(padding.kind, CopiedPadding):
        return False
    alone = graph.readers(padding.name) == (node,) and graph.readers(padding.inputs[0]) == (padding,)
    if not alone or setting.gradient(node.name, "weight") is None:
        return False
    before = _rectifier(graph, padding.inputs[0])
    return before is not None and bool(shift_gradients(setting, before.name))


def _tells_apart(setting: Setting, node: Node) -> bool:
    """Whether a convolution's taps tell places apart at all: those of a depthwise one are no matrices."""
    return _equations_of(setting, node) > 1 or few_enough(setting, node)


def places_of(setting: Setting, node: Node) -> int:
    """Of all images together."""
    _, height, width = setting.graph.shape(node.inputs[0])
    return setting.image_count * height * width


def rank_of(setting: Setting, node: Node) -> int:
    """The places that the taps tell apart at most, and not more than those of as many images as are told apart."""
    _, height, width = setting.graph.shape(node.inputs[0])
    return min(_equations_of(setting, node), MOST_PLACES, MOST_IMAGES * height * width)


def _equations_of(setting: Setting, node: Node) -> int:
    """The places that there are equations for, whether or not so many are solved."""
    assert isinstance(node.kind, Convolution)
    return min(setting.graph.shape(node.inputs[0])[0], node.shape[0]) // node.kind.groups


def crowded(setting: Setting, node: Node) -> Refused:
    """That there are more places than its taps tell apart: for lack of equations, or because no more are solved."""
    rank = rank_of(setting, node)
    why = Why.LARGE if rank < _equations_of(setting, node) else Why.FEW_EQUATIONS
    many = setting.image_count > MOST_IMAGES
    return Refused("taps", node.inputs[0], why, places_of(setting, node), rank, many=many)


def crowding(setting: Setting, node: Node) -> float:
    """Places for each of those that its taps tell apart: they are taken apart up to 1."""
    return places_of(setting, node) / rank_of(setting, node)


def has_taps(setting: Setting, node: Node) -> bool:
    """Whether a convolution's weight gradient is of the form that is taken apart, whatever the number of places."""
    graph = setting.graph
    if not node.kind.has_taps:
        return False
    if setting.gradient(node.name, "weight") is None or graph.readers(node.inputs[0]) != (node,):
        return False
    before = _rectifier(graph, node.inputs[0])
    return before is not None and bool(shift_gradients(setting, before.name))


def _rectifier(graph: Graph, value: str) -> Node | None:
    """What rectifies a value, which may be passed on as it is; None where nothing does, or another operation reads
    it."""
    node = graph.by_name.get(value)
    while node is not None and isinstance(node.kind, Identity):
        entering = node.inputs[0]
        node = graph.by_name.get(entering) if graph.readers(entering) == (node,) else None
    return node if node is not None and node.kind.needs is Needs.OUTPUT else None


def _front(setting: Setting, rectifier: Node) -> Front | None:
    """The convolution in front of a rectifier, where nothing but batch norm stands between; None without one."""
    graph, reader, scale = setting.graph, rectifier, torch.ones(1, *rectifier.shape, dtype=torch.float64)
    while graph.readers(reader.inputs[0]) == (reader,) and reader.inputs[0] in graph.by_name:
        node = graph.by_name[reader.inputs[0]]
        if isinstance(node.kind, Convolution):
            gradient = setting.gradient(node.name, "weight")
            if gradient is None or node.kind.groups != 1:
                return None
            return Front(gradient.detach().cpu().double().flatten(1), scale[0, :, 0, 0])
        if not isinstance(node.kind, BatchNorm):
            return None
        (scale,) = node.kind.cotangents(scale, [torch.zeros_like(scale)], graph.tensors_of(node))
        reader = node
    return None


def few_enough(setting: Setting, node: Node) -> bool:
    """Whether there are no more places than its taps tell apart."""
    return crowding(setting, node) <= 1


def taps_operations(setting: Setting, node: Node) -> float:
    """To within a small factor: one factorisation for each place of an image, and the ranges of the gradient."""
    channels, height, width = node.shape
    return (height * width + 30.0) * places_of(setting, node) ** 3 + 40.0 * channels**3


def _taken(setting: Setting, known: Knowledge, node: Node) -> Derived | Refused:
    gradient = setting.gradient(node.name, "weight")
    assert gradient is not None
    value = node.inputs[0]
    rectifier = _rectifier(setting.graph, value)
    assert rectifier is not None
    shift, size = shift_gradients(setting, rectifier.name)[0], (node.shape[1], node.shape[2])
    places = places_of(setting, node)
    if not setting.effort.affords(taps_operations(setting, node)):
        return Refused("taps", value, Why.COST, places)
    tensors, balanced = setting.graph.tensors_of(node), behind_batch_statistics(setting.graph, node) is not None
    front = _front(setting, rectifier)
    taps = solve_taps(gradient, shift, setting.image_count, size, node.kind, tensors, balanced, front)
    if isinstance(taps, NoTaps):
        return Refused("taps", value, taps.why, places, error=taps.misfit)
    error = taps.error.clamp_min(_LEAST_ERROR)
    if not float(error.max()) <= setting.tolerance:
        return Refused("taps", value, Why.INEXACT, places, error=float(error.max()))
    found = replace(known, lengths=taps.length_error.clamp_min(_LEAST_ERROR))
    found = found.with_activations(value, evenly(taps.inputs, error, "taps"))
    own_error = taps.cotangent_error.clamp_min(_LEAST_ERROR)
    found = found.with_arriving(node.name, evenly(taps.cotangents, own_error, "taps"))
    checks = {
        "places": places,
        "equations": rank_of(setting, node),
        "leak": taps.leak,
        "misfit": taps.misfit,
        "lengths": taps.length_misfit,
    }
    return Derived("taps", value, found, checks, notable=True)

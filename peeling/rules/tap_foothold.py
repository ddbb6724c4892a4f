"""The rule that begins: a convolution's input and the derivative by its output, from its weight gradient alone.

See `tap_solution`; the lengths of the images are taken from a gradient that sums up the derivative in front of the
rectifier before the convolution.

Rank: ``N = B H W <= min(C_in, C_out)``; the zeros of the images must differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ...capture.labels.unmixing import MOST_IMAGES
from ..graph import Node
from ..kinds import Convolution, Needs
from ..refusals import Refused, Why
from ..tap_solution import NoTaps, solve_taps
from ..taps import MOST_PLACES
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
    candidates = [node for node in setting.graph.nodes if has_taps(setting, node)]
    if setting.foothold is not None:
        candidates = [node for node in candidates if node.name == setting.foothold]
    candidates.sort(key=lambda node: (crowding(setting, node), setting.graph.nodes.index(node)))
    for node in candidates:
        if few_enough(setting, node):
            yield _taken(setting, known, node)
    if candidates and not few_enough(setting, candidates[0]):
        best, rank = candidates[0], rank_of(setting, candidates[0])
        why = Why.LARGE if rank == MOST_PLACES else Why.FEW_EQUATIONS
        yield Refused("taps", best.inputs[0], why, places_of(setting, best), rank)
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
        if kind.groups > 1 and replace(kind, groups=1).has_taps:
            yield Refused("taps", node.inputs[0], Why.GROUPS)
            return


def places_of(setting: Setting, node: Node) -> int:
    """Of all images together."""
    _, height, width = setting.graph.shape(node.inputs[0])
    return setting.image_count * height * width


def rank_of(setting: Setting, node: Node) -> int:
    """The places that the taps tell apart at most."""
    return min(setting.graph.shape(node.inputs[0])[0], node.shape[0], MOST_PLACES)


def crowding(setting: Setting, node: Node) -> float:
    """Places for each of those that its taps tell apart: they are taken apart up to 1."""
    return places_of(setting, node) / rank_of(setting, node)


def has_taps(setting: Setting, node: Node) -> bool:
    """Whether a convolution's weight gradient is of the form that is taken apart, whatever the number of places."""
    graph = setting.graph
    if not node.kind.has_taps or setting.image_count > MOST_IMAGES:
        return False
    before = graph.by_name.get(node.inputs[0])
    return (
        setting.gradient(node.name, "weight") is not None
        and before is not None
        and before.kind.needs is Needs.OUTPUT
        and graph.readers(before.name) == (node,)
        and bool(shift_gradients(setting, before.name))
    )


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
    shift, size = shift_gradients(setting, value)[0], (node.shape[1], node.shape[2])
    places = places_of(setting, node)
    if not setting.effort.affords(taps_operations(setting, node)):
        return Refused("taps", value, Why.COST, places)
    tensors, balanced = setting.graph.tensors_of(node), behind_batch_statistics(setting.graph, node) is not None
    taps = solve_taps(gradient, shift, setting.image_count, size, node.kind, tensors, balanced)
    if isinstance(taps, NoTaps):
        return Refused("taps", value, taps.why, places, error=taps.misfit)
    error = taps.error.clamp_min(_LEAST_ERROR)
    if not float(error.max()) <= setting.tolerance:
        return Refused("taps", value, Why.INEXACT, places, error=float(error.max()))
    found = replace(known, lengths=torch.full_like(error, max(_LEAST_ERROR, taps.length_error)))
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

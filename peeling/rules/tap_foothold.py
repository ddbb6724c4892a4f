"""The rule that begins: a convolution's input and the derivative by its output, from its weight gradient alone.

`taps` takes the gradient apart up to a mixing of the images, `images_apart` undoes that up to each image's length, and
the lengths stand in the gradients that sum up the derivative in front of the rectifier before the convolution: ``sum_i
(1 / t_i) sum_p m_i (W^T * Delta_i)``, with as many equations in B unknowns as there are channels.

Rank: ``N = B H W <= min(C_in, C_out)``; the zeros of the images must differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...capture.labels.unmixing import MOST_IMAGES
from ..graph import Node
from ..images_apart import Apart, tell_apart
from ..kinds import Needs
from ..tap_cut import fit_lengths
from ..taps import MOST_PLACES, factor_taps
from .channel_sums import shift_gradients
from .knowledge import Knowledge, Known
from .rule import Derived, Refused, Setting

# Units of length-1 inputs below this share of their root mean square are shut.
_SHUT = 1e-4
# What the lengths may leave of the gradients that they are taken from.
_LARGEST_MISFIT = 0.01
# Float32 keeps about this of the sums that tell the lengths; nothing is called more exact.
_LEAST_ERROR = 5e-7


def tap_foothold(setting: Setting, known: Knowledge) -> Iterator[Derived | Refused]:
    """Input and derivative of one convolution, where nothing is known yet; the one with the fewest places first."""
    if known.arriving:
        return
    candidates = [node for node in setting.graph.nodes if _has_taps(setting, node)]
    for node in sorted(candidates, key=lambda node: (_crowding(setting, node), setting.graph.nodes.index(node))):
        if _crowding(setting, node) <= 1:
            yield _taken(setting, known, node)


def _crowding(setting: Setting, node: Node) -> float:
    """Places for each channel."""
    channels, height, width = setting.graph.shape(node.inputs[0])
    places = setting.image_count * height * width
    return places / min(channels, node.shape[0], MOST_PLACES)


def _has_taps(setting: Setting, node: Node) -> bool:
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


def _taken(setting: Setting, known: Knowledge, node: Node) -> Derived | Refused:
    gradient = setting.gradient(node.name, "weight")
    assert gradient is not None
    size = (node.shape[1], node.shape[2])
    factors = factor_taps(gradient, setting.image_count, size)
    if factors is None:
        return Refused("taps", node.name, "the weight gradient is not that of so many places")
    apart = tell_apart(factors)
    if apart is None:
        return Refused("taps", node.name, "the images cannot be told apart by the zeros of their features")
    inputs, cotangents = (_maps(rows, size) for rows in (apart.inputs, apart.cotangents))
    is_open = inputs > _SHUT * inputs.flatten(1).square().mean(1).sqrt()[:, None, None, None]
    tensors = setting.graph.tensors_of(node)
    (by_input,) = node.kind.cotangents(cotangents, [inputs], tensors)
    columns = (by_input * is_open).sum(dim=(2, 3)).T
    target = shift_gradients(setting, node.inputs[0])[0].detach().cpu().double()
    inverse, misfit, uncertain = fit_lengths(columns, target)
    if not misfit <= _LARGEST_MISFIT or not bool((inverse > 0).all()):
        return Refused("taps", node.name, f"the lengths of the images leave {misfit:.1g} of the gradient in front")
    length = inverse[:, None, None, None]
    error = _errors(apart, factors.misfit, max(misfit, uncertain))
    if not float(error.max()) <= setting.tolerance:
        return Refused("taps", node.name, f"known with an estimated error of {float(error.max()):.1g} only")
    found = replace(known, lengths=torch.full_like(error, max(_LEAST_ERROR, misfit, uncertain)))
    found = found.with_activations(node.inputs[0], _spread(inputs / length, error))
    found = found.with_arriving(node.name, _spread(cotangents * length, error))
    places = setting.image_count * size[0] * size[1]
    checks = {"places": places, "leak": factors.leak, "misfit": factors.misfit, "lengths": misfit}
    return Derived("taps", node.inputs[0], found, checks, notable=True)


def _errors(apart: Apart, misfit: float, lengths: float) -> Tensor:
    """Relative, of each image."""
    return apart.error.clamp_min(max(_LEAST_ERROR, 3 * misfit, lengths))


def _spread(values: Tensor, error: Tensor) -> Known:
    size = values.flatten(1).square().mean(dim=1).sqrt()
    deviation = (error * size)[:, None, None, None].expand_as(values)
    return Known(values, torch.ones_like(values, dtype=torch.bool), deviation, "taps")


def _maps(rows: Tensor, size: tuple[int, int]) -> Tensor:
    return rows.transpose(1, 2).reshape(len(rows), -1, *size).contiguous()

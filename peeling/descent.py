"""From the input of one parameter layer to the input of the one before it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .chain import TRANSPARENT, Link
from .checksums import ChannelSum, error_shown, settle, stored
from .layers import LARGEST, SHOWN_UP_TO, Solved, batch_norm_affine, peel_convolution, size, spread_error, worst
from .linear import peel_linear
from .units import Units, judge, no_units

# So many activations below zero tell how large errors are; and the least uncertainty, in deviations.
_MANY, _LEAST = 100, 3.0
# A channel that batch norm scales to less of the largest scale says nothing about its input.
_SILENT = 1e-6
# What a unit is set to that was open and came out at zero or below, as a share of its uncertainty.
_BARELY_OPEN = 0.1


@dataclass(frozen=True)
class State:
    """Activations and cotangent at the input of ``chain[index]``."""

    index: int
    activations: Tensor
    cotangent: Tensor
    error: float
    uncertainty: Tensor
    """Estimated largest absolute error of each activation, of the same shape."""
    scales: tuple[float, ...] = ()


@dataclass(frozen=True)
class Passage:
    """The way from a state down to the output of the parameter layer before it, or to the chain's start.

    Tensors have the shape of one image's output there, with the batch in front.
    """

    index: int
    """Of that layer; -1 where none is left."""
    activations: Tensor
    """Its output, where units are known to be open."""
    unmasked: Tensor
    """The cotangent there if every unit of a ReLU on the way were open."""
    units: Units
    passed: Tensor
    """False where a batch norm on the way silenced the channel."""
    sums: tuple[ChannelSum, ...]
    relu: int | None
    """Position of the first ReLU on the way."""
    above: float
    """Relative error of the cotangent that sums behind a ReLU show."""
    error: float
    """Estimated relative error of the cotangent in front of it, from units on the wrong side; 0 without one."""


def pass_down(chain: Sequence[Link], state: State, gradients: Mapping[str, Tensor]) -> Passage:
    """Undo batch norms and ReLUs, and settle which units were open by the gradients that sum the cotangent up."""
    activations, unmasked, uncertainty = state.activations, state.cotangent, state.uncertainty
    units, passed, relu = no_units(activations), torch.ones_like(activations, dtype=torch.bool), None
    sums: list[ChannelSum] = []
    errors = [0.0]
    index = state.index - 1
    while index >= 0 and not isinstance(chain[index].module, nn.Linear | nn.Conv2d):
        link, module = chain[index], chain[index].module
        activations, unmasked, uncertainty, passed = shaped(
            link.output_shape, activations, unmasked, uncertainty, passed
        )
        units = units.reshaped(*link.output_shape)
        if isinstance(module, nn.ReLU):
            # What lies behind this ReLU says nothing of it.
            settled = settle(_best(sums), unmasked, units)
            units, sums = settled.units, []
            errors.append(settled.error)
            units = units.both(judge(activations, uncertainty))
            activations, relu = activations.clamp_min(0), index if relu is None else relu
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            sums += _norm_sums(link, gradients, activations, unmasked)
            if link.batch_statistics:
                index = -1
                break
            scale, shift = (t.detach().double().cpu() for t in batch_norm_affine(module, activations.dim()))
            heard = scale.abs() > _SILENT * scale.abs().max()
            passed = passed & heard
            divisor = torch.where(heard, scale, 1.0)
            activations = torch.where(heard, (activations - shift) / divisor, 0.0)
            unmasked, uncertainty = unmasked * scale, uncertainty / divisor.abs()
        activations, unmasked, uncertainty, passed = shaped(
            link.input_shape, activations, unmasked, uncertainty, passed
        )
        units = units.reshaped(*link.input_shape)
        index -= 1
    if index >= 0:
        activations, unmasked, passed = shaped(chain[index].output_shape, activations, unmasked, passed)
        units = units.reshaped(*chain[index].output_shape)
        sums += _layer_sums(chain[index], gradients, activations, unmasked)
    used = tuple(_best(sums))
    settled, above = settle(used, unmasked, units), worst(*errors)
    error = worst(above, settled.error)
    return Passage(index, activations, unmasked, settled.units, passed, used, relu, above, error)


def descend(chain: Sequence[Link], state: State, passage: Passage, gradients: Mapping[str, Tensor]) -> State | str:
    """Solve the layer at the end of the passage, or say why not."""
    if passage.index < 0:
        return "the layer before it is not of a kind that can be solved"
    link, layer = chain[passage.index], chain[passage.index].module
    gradient = gradients.get(f"{link.name}.weight")
    if gradient is None:
        return f"the update lacks the gradient of {link.name}.weight (a frozen layer)"
    gradient, shape = gradient.cpu(), (len(state.activations), *link.input_shape)
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    outputs, units = _without_bias(layer, passage.activations), passage.units
    known, cotangent = units.is_open & passage.passed, passage.unmasked * units.is_open
    given = gradient, cotangent, outputs * known, known
    if isinstance(layer, nn.Linear):
        if len(shape) != 2:
            return f"{link.name} runs on more than one vector for each image"
        solved = peel_linear(layer, *given, passage.unmasked, units.doubtful)
    else:
        solved = peel_convolution(layer, shape, *given, state.error, passage.unmasked, units.doubtful)
    cotangent = cotangent if solved.cotangent is None else solved.cotangent
    is_open = torch.where(passage.unmasked != 0, cotangent != 0, units.is_open)
    # A layer that was solved leaves no unit in doubt that its misfit does not show.
    sure = Units(is_open, torch.zeros_like(cotangent), units.doubtful)
    shown = max(passage.above, error_shown(passage.sums, passage.unmasked, sure))
    solved = _non_negative(solved, chain[: passage.index])
    below = _cotangent_below(layer, shape, cotangent)
    error = worst(state.error, solved.error, shown)
    return State(passage.index, solved.activations, below, error, solved.uncertainty, state.scales)


def open_units(passage: Passage, state: State, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Activations and cotangent in front of the passage's ReLU, of a shape: both are zero where a unit was shut."""
    activations, cotangent, uncertainty = shaped(shape, state.activations, state.cotangent, state.uncertainty)
    is_open = passage.units.reshaped(*shape).is_open
    floor = (_BARELY_OPEN * uncertainty).clamp_min(1e-9 * float(activations.max()))
    return torch.where(is_open, activations.maximum(floor), 0.0), cotangent * is_open


def shaped(shape: tuple[int, ...], *tensors: Tensor) -> list[Tensor]:
    """Each tensor with this shape of one image."""
    return [tensor.reshape(len(tensor), *shape) for tensor in tensors]


def is_behind_relu(before: Sequence[Link]) -> bool:
    """Whether what leaves these layers is the output of a ReLU as it is."""
    for link in reversed(before):
        if not isinstance(link.module, TRANSPARENT):
            return isinstance(link.module, nn.ReLU)
    return False


def _by_channel(tensor: Tensor) -> Tensor:
    return tensor.reshape(*tensor.shape[:2], -1)


def _norm_sums(link: Link, gradients: Mapping[str, Tensor], activations: Tensor, unmasked: Tensor) -> list[ChannelSum]:
    """What a batch norm's shift and weight sum up, at its output."""
    found, terms = [], _by_channel(unmasked)
    if f"{link.name}.bias" in gradients:
        total, rounding = stored(gradients[f"{link.name}.bias"])
        found.append(ChannelSum(total, terms, rounding))
    if f"{link.name}.weight" in gradients:
        total, rounding = stored(gradients[f"{link.name}.weight"])
        weight, bias = (_column(p) for p in (link.module.weight, link.module.bias))
        # Times the weight, so that one that is zero does no harm.
        terms = terms * (_by_channel(activations) - bias)
        found.append(ChannelSum(total * weight[:, 0], terms, rounding * weight[:, 0].abs(), needs_activations=True))
    return found


def _layer_sums(link: Link, gradients: Mapping[str, Tensor], activations: Tensor, unmasked: Tensor) -> list[ChannelSum]:
    """What a layer's bias and weight sum up, at its output."""
    found, layer = [], link.module
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    if f"{link.name}.bias" in gradients:
        total, rounding = stored(gradients[f"{link.name}.bias"])
        found.append(ChannelSum(total, _by_channel(unmasked), rounding))
    if f"{link.name}.weight" in gradients:
        gradient, rounding = stored(gradients[f"{link.name}.weight"])
        weight = layer.weight.detach().double().cpu()
        terms = _by_channel(unmasked * _without_bias(layer, activations))
        total = (weight * gradient).flatten(1).sum(dim=1)
        spread = (weight * rounding).flatten(1).norm(dim=1)
        found.append(ChannelSum(total, terms, spread, needs_activations=True))
    return found


def _column(parameter: object) -> Tensor:
    assert isinstance(parameter, Tensor)
    return parameter.detach().double().cpu()[:, None]


def _best(sums: Sequence[ChannelSum]) -> list[ChannelSum]:
    """Those that need no activations, where there are any: they are the most exact ones."""
    return [one for one in sums if not one.needs_activations] or list(sums)


def _without_bias(layer: nn.Linear | nn.Conv2d, outputs: Tensor) -> Tensor:
    if layer.bias is None:
        return outputs
    bias = layer.bias.detach().double().cpu()
    return outputs - (bias if isinstance(layer, nn.Linear) else bias[:, None, None])


def _cotangent_below(layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...], cotangent: Tensor) -> Tensor:
    weight = layer.weight.detach().double().cpu()
    if isinstance(layer, nn.Linear):
        return cotangent @ weight
    below = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        output = F.conv2d(below, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        return torch.autograd.grad(output, below, cotangent)[0]


def _non_negative(solved: Solved, before: Sequence[Link]) -> Solved:
    """Activations that come out of a ReLU cannot be negative: a negative part is error that was not seen elsewhere.

    Where there are many such, the largest one in terms of its own uncertainty tells how large all uncertainties are.
    """
    if not is_behind_relu(before) or solved.error == math.inf:
        return solved
    activations, uncertainty = solved.activations, solved.uncertainty
    below = activations < 0
    error = worst(solved.error, float((activations * below).norm() / activations.norm()))
    largest = float((-activations / uncertainty.clamp_min(1e-300)).max())
    if int(below.sum()) >= _MANY:
        # Errors that a defence made spare some units: then what was estimated holds too.
        least = _LEAST / LARGEST if solved.error <= SHOWN_UP_TO else 1.0
    else:
        least = max(1.0, size(spread_error(activations, solved.error)) / max(size(uncertainty), 1e-300))
    uncertainty = uncertainty * max(largest, least)
    return replace(solved, activations=activations.clamp_min(0), error=error, uncertainty=uncertainty)

"""From the input of one parameter layer to the input of the one before it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .chain import Link
from .checksums import ChannelSum, error_shown, settle, stored
from .direct import OVERDETERMINED
from .kinds import Rectifier, over_channels
from .layers import LARGEST, SHOWN_UP_TO, Equations, Solved, size, spread_error, worst
from .refusals import Refused, Why
from .units import Units, no_units

RULE = "layer by layer"

# So many activations below zero tell how large errors are; and the least uncertainty, in deviations.
_MANY, _LEAST = 100, 3.0
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
    unknowns: int | None = None
    """Of the equations that gave it; None where these are not linear."""
    equations: int | None = None


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
    """Undo what lies in between, and settle which units were open by the gradients that sum the cotangent up."""
    activations, unmasked, uncertainty = state.activations, state.cotangent, state.uncertainty
    units, passed, relu = no_units(activations), torch.ones_like(activations, dtype=torch.bool), None
    sums: list[ChannelSum] = []
    errors = [0.0]
    index = state.index - 1
    while index >= 0 and not chain[index].kind.solvable:
        link, kind = chain[index], chain[index].kind
        activations, unmasked, uncertainty, passed = shaped(
            link.output_shape, activations, unmasked, uncertainty, passed
        )
        units = units.reshaped(*link.output_shape)
        sums += _channel_sums(link, gradients, activations, unmasked)
        # In the model's type, so that what batch norm is rounded to there it is here.
        tensors = {role: tensor.detach() for role, tensor in link.tensors().items()}
        judged = kind.units(activations, uncertainty)
        inverse = kind.inverse(activations, uncertainty, tensors)
        if judged is not None:
            # What lies behind these units says nothing of them.
            settled = settle(_best(sums), unmasked, units)
            units, sums = settled.units.both(judged), []
            errors.append(settled.error)
            activations, relu = kind.forward([activations], tensors), index if relu is None else relu
        elif inverse is not None:
            unmasked = _below(link, unmasked, inverse.values, activations, tensors)
            activations, uncertainty, passed = inverse.values, inverse.spread, passed & inverse.heard
        else:
            index = -1
            break
        activations, unmasked, uncertainty, passed = shaped(
            link.input_shape, activations, unmasked, uncertainty, passed
        )
        units = units.reshaped(*link.input_shape)
        index -= 1
    if index >= 0:
        activations, unmasked, passed = shaped(chain[index].output_shape, activations, unmasked, passed)
        units = units.reshaped(*chain[index].output_shape)
        sums += _channel_sums(chain[index], gradients, activations, unmasked)
    used = tuple(_best(sums))
    settled, above = settle(used, unmasked, units), worst(*errors)
    error = worst(above, settled.error)
    return Passage(index, activations, unmasked, settled.units, passed, used, relu, above, error)


def descend(chain: Sequence[Link], state: State, passage: Passage, gradients: Mapping[str, Tensor]) -> State | Refused:
    """Solve the layer at the end of the passage, or say why not."""
    if passage.index < 0:
        return Refused(RULE, chain[0].name, Why.KIND)
    link, units = chain[passage.index], passage.units
    gradient = link.gradient(gradients, "weight")
    if gradient is None:
        return Refused(RULE, link.name, Why.FROZEN)
    tensors = _exact(link)
    known, cotangent = units.is_open & passage.passed, passage.unmasked * units.is_open
    solved = link.kind.solve(
        Equations(
            (len(state.activations), *link.input_shape),
            tensors["weight"],
            gradient.cpu(),
            cotangent,
            _without_bias(passage.activations, tensors) * known,
            known,
            state.error,
            passage.unmasked,
            units.doubtful,
        )
    )
    cotangent = cotangent if solved.cotangent is None else solved.cotangent
    is_open = torch.where(passage.unmasked != 0, cotangent != 0, units.is_open)
    # A layer that was solved leaves no unit in doubt that its misfit does not show.
    sure = Units(is_open, torch.zeros_like(cotangent), units.doubtful)
    shown = max(passage.above, error_shown(passage.sums, passage.unmasked, sure))
    solved = _non_negative(solved, chain[: passage.index])
    # A layer that can be solved is linear: its derivative is the same at every input, and there may be none.
    anything = cotangent.new_zeros(len(cotangent), *link.input_shape)
    below = _below(link, cotangent, anything, passage.activations, tensors)
    error = worst(state.error, solved.error, shown)
    unknowns, equations, growing = _counted(len(state.activations), link.input_shape, gradient, int(known.sum()))
    if solved.error == math.inf:
        why = Why.OPEN if equations >= unknowns else Why.FEW_EQUATIONS
        return Refused(RULE, link.name, why, unknowns, equations, growing)
    return State(passage.index, solved.activations, below, error, solved.uncertainty, state.scales, unknowns, equations)


def _counted(count: int, input_shape: tuple[int, ...], gradient: Tensor, outputs: int) -> tuple[int, int, int]:
    """Unknowns and equations of a layer's input, of one channel where the weight gradient alone is enough for it; and
    those of the equations that every image brings with it."""
    if gradient.dim() < 3:
        return count, len(gradient), 0
    places, rows = count * math.prod(input_shape[1:]), gradient[:, 0].numel()
    if gradient.shape[1] == input_shape[0] and rows >= OVERDETERMINED * places:
        return places, rows, 0
    own = int(outputs / OVERDETERMINED)
    return places * input_shape[0], own + int(gradient.numel() / OVERDETERMINED), own


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
        if not link.kind.keeps_numbers:
            return link.kind == Rectifier()
    return False


def _by_channel(tensor: Tensor) -> Tensor:
    return tensor.reshape(*tensor.shape[:2], -1)


def _channel_sums(
    link: Link, gradients: Mapping[str, Tensor], activations: Tensor, unmasked: Tensor
) -> list[ChannelSum]:
    """What a layer's bias and weight sum up, at its output.

    Without the bias each channel of the output is linear in its own part of the weight, whatever the kind of layer: the
    derivative by that part, times the part, is the cotangent times the output.
    """
    found, tensors = [], _exact(link)
    by_bias, by_weight = (link.gradient(gradients, role) for role in ("bias", "weight"))
    if by_bias is not None:
        total, rounding = stored(by_bias)
        found.append(ChannelSum(total, _by_channel(unmasked), rounding))
    if by_weight is not None:
        gradient, rounding = stored(by_weight)
        terms = _by_channel(unmasked * _without_bias(activations, tensors))
        weight = tensors["weight"].reshape(len(gradient), -1)
        total = (weight * gradient.reshape(weight.shape)).sum(dim=1)
        spread = (weight * rounding.reshape(weight.shape)).norm(dim=1)
        found.append(ChannelSum(total, terms, spread, needs_activations=True))
    return found


def _exact(link: Link) -> dict[str, Tensor]:
    """A layer's tensors in float64, on the CPU."""
    return {role: tensor.detach().double().cpu() for role, tensor in link.tensors().items()}


def _best(sums: Sequence[ChannelSum]) -> list[ChannelSum]:
    """Those that need no activations, where there are any: they are the most exact ones."""
    return [one for one in sums if not one.needs_activations] or list(sums)


def _without_bias(outputs: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    return outputs - over_channels(tensors["bias"], outputs) if "bias" in tensors else outputs


def _below(link: Link, cotangent: Tensor, inputs: Tensor, outputs: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """The cotangent in front of a layer."""
    seen = link.kind.seen(shaped(link.input_shape, inputs), outputs)
    (below,) = link.kind.cotangents(cotangent, seen, tensors)
    return below


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

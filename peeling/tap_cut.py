"""A cut through a residual network: the input of one of its convolutions for every image, found by taps alone.

Neither the final layer nor labels nor what pools and adds up behind are needed (see `taps`). Told apart, the images'
inputs have their direction each; their lengths stand in the batch norm in front: where a convolution with weight W
reads ``relu(bn(.))`` and nothing else does, the gradient by the batch norm's bias is the sum over images and places of
the derivative by its output, ``dL/dbeta_c = sum_i (1 / t_i) sum_p m_i(c, p) (W^T * Delta_i)(c, p)`` with m the open
units, as many equations in the B unknown lengths t_i as the batch norm has channels, and so a check of all that came
before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..capture import BatchNormMode, CapturedUpdate, client_mode
from ..capture.forward import on_probes
from ..capture.labels.final_layer import natural_noise
from ..capture.labels.unmixing import MOST_IMAGES
from .images_apart import tell_apart
from .kinds import BatchNorm, Kind, ModuleCall, kind_of, read_module
from .taps import MOST_PLACES, factor_taps

# Units of length-1 inputs below this share of their root mean square are shut.
_SHUT = 1e-4
# Channels whose equation is off by more than so many times the median count for less.
_FAR, _REWEIGHTED = 3.0, 30
# Deviations of a length, of which the residual's median is two thirds of one, that count as its error.
_LENGTH_DOUBT = 4.5
# What the lengths may leave of the bias gradient.
_LARGEST_MISFIT = 0.01
# Float32 keeps about this of a sum; nothing is called more exact.
_LEAST_ERROR = 1e-6
# How far two ways to one derivative may be apart on a probe, relative.
_SAME = 1e-3


@dataclass(frozen=True)
class TapCut:
    """What is known of every image at the output of one batch norm, in front of its ReLU."""

    convolution: str
    """Whose weight gradient was taken apart."""
    batch_norm: str
    """In front of it, with a ReLU in between."""
    activations: Float[Tensor, "image channel height width"]
    """The output of the ReLU: where it is zero, that of the batch norm is only known not to be positive."""
    error: float
    """Estimated relative error of the activations."""


@dataclass(frozen=True)
class _Candidate:
    """A convolution whose taps may be taken apart."""

    convolution: str
    kind: Kind
    weight: Tensor
    batch_norm: str
    size: tuple[int, int]
    """Height and width of its input."""


def find_tap_cut(update: CapturedUpdate, model: nn.Module, tolerance: float = 3e-2) -> TapCut | None:
    """The cut nearest to the images; None where no convolution has few enough places, or nothing fits together.

    Args:
        update: a gradient; batch norm on its running statistics.
        model: the server's model; it is left as it was.
        tolerance: the largest estimated error of the activations.
    """
    for candidate in _candidates(update, model):
        found = _solve(candidate, update, model)
        if found is not None and found.error <= tolerance:
            return found
    return None


def _solve(candidate: _Candidate, update: CapturedUpdate, model: nn.Module) -> TapCut | None:
    gradient = update.gradients.get(f"{candidate.convolution}.weight")
    bias_gradient = update.gradients.get(f"{candidate.batch_norm}.bias")
    if gradient is None or bias_gradient is None:
        return None
    factors = factor_taps(gradient, update.image_count, candidate.size)
    apart = None if factors is None else tell_apart(factors)
    if factors is None or apart is None:
        return None
    inputs, cotangents = (_maps(rows, candidate.size) for rows in (apart.inputs, apart.cotangents))
    (by_input,) = candidate.kind.cotangents(cotangents, [inputs], {"weight": candidate.weight.double().cpu()})
    is_open = inputs > _SHUT * inputs.flatten(1).square().mean(1).sqrt()[:, None, None, None]
    columns = (by_input * is_open).sum(dim=(2, 3)).T
    inverse, misfit, uncertain = fit_lengths(columns, bias_gradient.detach().double().cpu())
    if not misfit <= _LARGEST_MISFIT or not bool((inverse > 0).all()):
        return None
    activations = inputs * is_open / inverse[:, None, None, None]
    error = max(_LEAST_ERROR, float(apart.error.max()), 3 * factors.misfit, misfit, uncertain)
    return TapCut(candidate.convolution, candidate.batch_norm, activations.float(), error)


def _maps(rows: Float[Tensor, "image place channel"], size: tuple[int, int]) -> Tensor:
    return rows.transpose(1, 2).reshape(len(rows), -1, *size).contiguous()


def fit_lengths(
    columns: Float[Tensor, "channel image"], target: Float[Tensor, " channel"]
) -> tuple[Tensor, float, float]:
    """One over each image's length, by least squares in which channels with a unit on the wrong side count for less;
    what is left in the median channel, relative; and the relative error of the length that is known least."""
    # Channels in which no unit of any image is open say nothing, and would hide in the medians what the others leave.
    alive = columns.norm(dim=1) > 0
    if int(alive.sum()) < columns.shape[1]:
        return torch.zeros_like(columns[0]), float("inf"), float("inf")
    columns, target = columns[alive], target[alive]
    size = columns.norm(dim=0).clamp_min(1e-300)
    scaled, weights = columns / size, torch.ones_like(target)
    for _ in range(_REWEIGHTED):
        weighted = scaled * weights[:, None]
        solution = torch.linalg.lstsq(weighted, (target * weights)[:, None]).solution[:, 0]
        left = (scaled @ solution - target).abs()
        typical = float(left.median().clamp_min(1e-300))
        weights = 1 / (1 + (left / (_FAR * typical)).square()).sqrt()
    # An image that the network is sure of adds little to the bias gradient: its length is known less well than the fit
    # is good.
    spread = torch.linalg.pinv(weighted.T @ weighted).diagonal().clamp_min(0).sqrt()
    uncertain = _LENGTH_DOUBT * typical * float((spread / solution.abs().clamp_min(1e-300)).max())
    return solution / size, float(left.median() / target.abs().median().clamp_min(1e-300)), uncertain


def _candidates(update: CapturedUpdate, model: nn.Module) -> list[_Candidate]:
    """In the order in which the model runs them: the first one is nearest to the images."""
    if update.image_count > MOST_IMAGES:
        return []
    seen = on_probes(partial(_probe, update, model), update.image_shape, 2, update.image_count)
    found = []
    for name, one in seen.convolutions.items():
        size = (one.entering.shape[2], one.entering.shape[3])
        places = update.image_count * size[0] * size[1]
        if places > min(*one.weight.shape[:2], MOST_PLACES):
            continue
        (by_input,) = one.kind.cotangents(seen.derivatives[name], [one.entering], {"weight": one.weight})
        before = _batch_norm_before(one.entering, by_input, seen)
        if before is not None:
            found.append(_Candidate(name, one.kind, one.weight, before, size))
    return found


def _batch_norm_before(entering: Tensor, by_input: Tensor, seen: _Seen) -> str | None:
    """The batch norm whose rectified output is this convolution's input, and no other layer's."""
    for name, output in seen.batch_norms.items():
        if output.shape != entering.shape or not torch.equal(output.clamp_min(0), entering):
            continue
        expected, by_output = by_input * (output > 0), seen.derivatives[name]
        if float((by_output - expected).norm()) <= _SAME * float(by_output.norm()):
            return name
    return None


@dataclass(frozen=True)
class _Entered:
    """A convolution that has taps."""

    kind: Kind
    weight: Tensor
    entering: Tensor


@dataclass
class _Seen:
    """What a pass of the probe saw, in the order in which the model ran it."""

    convolutions: dict[str, _Entered] = field(default_factory=dict)
    batch_norms: dict[str, Tensor] = field(default_factory=dict)
    """Outputs."""
    derivatives: dict[str, Tensor] = field(default_factory=dict)
    """By the output of each of both."""


def _probe(update: CapturedUpdate, model: nn.Module, count: int) -> _Seen:
    """Images of noise through the model, and a random functional of its output backwards."""
    seen, handles = _Seen(), []
    for name, module in model.named_modules():

        def passed(module: nn.Module, inputs: tuple[object, ...], output: object, name: str = name) -> None:
            if not isinstance(output, Tensor) or not output.requires_grad:
                return
            train = update.batch_norm is not BatchNormMode.EVAL
            layer = read_module(ModuleCall(module, train, tuple(output.shape[1:])))
            if layer is None or "weight" not in layer.tensors:
                return
            # Where it is called by keyword its input is not seen.
            if layer.kind.has_taps and inputs and isinstance(inputs[0], Tensor):
                weight = module.get_parameter(layer.tensors["weight"]).detach()
                seen.convolutions[name] = _Entered(layer.kind, weight, inputs[0].detach().clone())
            elif kind_of(module) is BatchNorm:
                # Before a ReLU that works in place changes it: the hook sees the derivative by what it is now.
                seen.batch_norms[name] = output.detach().clone()
            else:
                return
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: seen.derivatives.__setitem__(name, gradient.detach())
            )

        if kind_of(module) is not None:
            handles.append(module.register_forward_hook(passed))
    like = next(model.parameters())
    try:
        with torch.enable_grad(), client_mode(model, update.batch_norm):
            output = model(natural_noise(count, update.image_shape).to(like))
            random = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            torch.autograd.grad((output * random).sum(), trained, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    seen.convolutions = {name: one for name, one in seen.convolutions.items() if name in seen.derivatives}
    seen.batch_norms = {name: one for name, one in seen.batch_norms.items() if name in seen.derivatives}
    return seen

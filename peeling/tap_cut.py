"""A cut through a residual network: the input of one of its convolutions for every image, found by taps alone.

Neither the final layer nor labels nor what pools and adds up behind are needed (see `taps`). The lengths of the images
are taken from the bias gradient of the batch norm in front (see `tap_solution`).
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
from .kinds import BatchNorm, Kind, ModuleCall, kind_of, read_module
from .tap_solution import NoTaps, solve_taps
from .taps import MOST_PLACES

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
        found = _solve(candidate, update)
        if found is not None and found.error <= tolerance:
            return found
    return None


def _solve(candidate: _Candidate, update: CapturedUpdate) -> TapCut | None:
    gradient = update.gradients.get(f"{candidate.convolution}.weight")
    bias_gradient = update.gradients.get(f"{candidate.batch_norm}.bias")
    if gradient is None or bias_gradient is None:
        return None
    tensors = {"weight": candidate.weight.double().cpu()}
    found = solve_taps(gradient, bias_gradient, update.image_count, candidate.size, candidate.kind, tensors)
    if isinstance(found, NoTaps):
        return None
    activations = found.inputs * found.is_open
    error = max(_LEAST_ERROR, float(found.error.max()))
    return TapCut(candidate.convolution, candidate.batch_norm, activations.float(), error)


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

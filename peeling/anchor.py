"""The shallowest place in the model whose activations the update determines, and the way there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..capture import CapturedUpdate
from .chain import Link, trace_chain
from .config import PeelingConfig
from .head import peel_head
from .layers import Solved, peel_convolution, peel_linear


@dataclass(frozen=True)
class Anchor:
    """Recovered activations at the input of one module. Agents need only invert the layers before it.

    The gradients of those layers are ``cotangent^T d(activations)/d(parameters)``, with the cotangent exact instead
    of the one that a candidate would produce.
    """

    module: str
    """Name of the module whose input is known."""
    activations: Tensor
    """``(batch, ...)``, the module's input for each image; behind a ReLU when ``one_sided``."""
    cotangent: Tensor
    """Derivative of the mean loss by that input."""
    one_sided: bool
    """The module is a ReLU: where ``activations`` is zero its input is only known not to be positive."""
    explained: tuple[str, ...]
    """Parameters from this module on, whose gradients the activations account for."""
    error: float
    """Largest estimated relative error on the way."""

    def to(self, device: torch.device) -> Anchor:
        """The same on another device, in float32."""
        return replace(
            self,
            activations=self.activations.to(device, torch.float32),
            cotangent=self.cotangent.to(device, torch.float32),
        )


@dataclass(frozen=True)
class Peeling:
    """How far peeling came: the anchor (or None) and one sentence that says why it stopped there."""

    anchor: Anchor | None
    message: str


@dataclass
class _State:
    """Activations and cotangent at the input of ``chain[index]``."""

    index: int
    activations: Tensor
    cotangent: Tensor
    error: float


def peel(
    update: CapturedUpdate, model: nn.Module, labels: Int[Tensor, " batch"], config: PeelingConfig | None = None
) -> Peeling:
    """Solve layer after layer from the last one towards the image, as far as the update determines the activations.

    Args:
        update: What the client sent.
        model: The server's model; it is not changed.
        labels: The batch's labels, one per image.
        config: Tolerance and switch.
    """
    config = config or PeelingConfig()
    if not config.enabled:
        return Peeling(None, "Layer peeling is switched off.")
    chain = trace_chain(model, update.image_shape, update.batch_norm)
    if not chain:
        return Peeling(None, "Layer peeling needs a model that ends in a fully connected layer.")
    last = chain[-1]
    gradients = update.gradients
    bias = getattr(last.module, "bias", None)
    weight = last.module.weight
    assert isinstance(weight, Tensor)
    head = peel_head(weight, bias, gradients[f"{last.name}.weight"], gradients.get(f"{last.name}.bias"), labels)
    if not head.error <= config.tolerance:
        return Peeling(None, _refusal(last.name, head.error, config.tolerance, len(labels), weight.shape[0]))
    state = _State(len(chain) - 1, head.features, head.cotangent, head.error)
    anchor = _anchor(chain, state)
    reason = "the model's structure ends the chain"
    while state.index > 0:
        below = _descend(chain, state, update)
        if below is None:
            reason = "the layer before it is not of a kind that can be solved"
            break
        if not below.error <= config.tolerance:
            reason = f"{chain[below.index].name} is not determined by the update (error {below.error:.1g})"
            break
        state = below
        anchor = _anchor(chain, state)
    message = (
        f"Layer peeling recovered each image's activations at the input of {anchor.module} "
        f"({len(anchor.explained)} parameter tensors explained, error {anchor.error:.1g}); it stopped there because {reason}."
    )
    return Peeling(anchor, message)


def _refusal(name: str, error: float, tolerance: float, batch: int, classes: int) -> str:
    if batch >= classes:
        return f"Layer peeling needs fewer images than classes; the update has {batch} images and {classes} classes."
    return (
        f"Layer peeling stopped at {name}: the features behind the gradient have an estimated error of {error:.2g}, "
        f"above peeling.tolerance={tolerance:g} (repeated labels, noise or pruning do this)."
    )


def _descend(chain: list[Link], state: _State, update: CapturedUpdate) -> _State | None:
    """From the input of one parameter layer to the input of the one before it."""
    index = state.index - 1
    activations, cotangent = state.activations, state.cotangent
    known = torch.ones_like(activations, dtype=torch.bool)
    while index >= 0 and not isinstance(chain[index].module, nn.Linear | nn.Conv2d):
        module = chain[index].module
        shape = (len(activations), *chain[index].input_shape)
        if isinstance(module, nn.ReLU):
            known = known & _open(activations, state.error)
            activations, cotangent = activations * known, cotangent * known
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            scale, shift = _affine(module, len(shape))
            activations, cotangent = (activations - shift) / scale, cotangent * scale
        activations, cotangent, known = (t.reshape(shape) for t in (activations, cotangent, known))
        index -= 1
    if index < 0:
        return None
    layer, name = chain[index].module, chain[index].name
    gradient = update.gradients[f"{name}.weight"].double().cpu()
    shape = (len(activations), *chain[index].input_shape)
    if isinstance(layer, nn.Linear):
        if len(shape) != 2:
            return None
        solved = peel_linear(gradient, cotangent)
        below = cotangent @ layer.weight.detach().double().cpu()
    else:
        assert isinstance(layer, nn.Conv2d)
        bias = 0.0 if layer.bias is None else layer.bias.detach().double().cpu()[:, None, None]
        solved = peel_convolution(layer, shape, gradient, cotangent, (activations - bias) * known, known)
        below = _convolution_cotangent(layer, shape, cotangent)
    solved = _non_negative(solved, chain, index)
    return _State(index, solved.activations, below, max(state.error, solved.error))


def _open(activations: Tensor, error: float) -> Tensor:
    """Where the ReLU was open: above the numerical error of what was recovered."""
    return activations > max(10 * error, 1e-6) * float(activations.abs().max())


def _affine(module: nn.BatchNorm2d | nn.BatchNorm1d, dimensions: int) -> tuple[Tensor, Tensor]:
    """Batch norm in evaluation mode as ``scale * x + shift``, broadcastable over ``(batch, channel, ...)``."""
    assert module.running_mean is not None
    assert module.running_var is not None
    scale = (module.running_var.double() + module.eps).rsqrt()
    if module.affine:
        scale = scale * module.weight.detach().double()
    shift = -module.running_mean.double() * scale
    if module.affine:
        shift = shift + module.bias.detach().double()
    view = (1, -1) + (1,) * (dimensions - 2)
    return scale.cpu().view(view), shift.cpu().view(view)


def _convolution_cotangent(layer: nn.Conv2d, shape: tuple[int, ...], cotangent: Tensor) -> Tensor:
    return torch.nn.grad.conv2d_input(
        list(shape),
        layer.weight.detach().double().cpu(),
        cotangent,
        stride=layer.stride,
        padding=layer.padding,  # type: ignore[arg-type]
        dilation=layer.dilation,
        groups=layer.groups,
    )


def _non_negative(solved: Solved, chain: list[Link], index: int) -> Solved:
    """Activations that come out of a ReLU cannot be negative: a negative part is error that was not seen elsewhere."""
    behind_relu = any(
        isinstance(link.module, nn.ReLU)
        for link in chain[_previous_parameter_layer(chain, index) + 1 : index]
    )
    if not behind_relu or solved.error == float("inf"):
        return solved
    negative = float(solved.activations.clamp_max(0).norm() / solved.activations.norm())
    return Solved(solved.activations.clamp_min(0), max(solved.error, negative))


def _previous_parameter_layer(chain: list[Link], index: int) -> int:
    for position in range(index - 1, -1, -1):
        if isinstance(chain[position].module, nn.Linear | nn.Conv2d):
            return position
    return -1


def _anchor(chain: list[Link], state: _State) -> Anchor:
    """Moves the anchor in front of a ReLU that leads into the layer: its input has a derivative everywhere."""
    index = state.index
    activations, cotangent, one_sided = state.activations, state.cotangent, False
    for position in range(state.index - 1, -1, -1):
        module, shape = chain[position].module, (len(activations), *chain[position].input_shape)
        if isinstance(module, nn.ReLU):
            is_open = _open(activations, state.error)
            activations, cotangent = activations * is_open, cotangent * is_open
            one_sided, index = True, position
        elif not isinstance(module, nn.Flatten | nn.Dropout | nn.Dropout2d | nn.Identity):
            break
        activations, cotangent = activations.reshape(shape), cotangent.reshape(shape)
        if one_sided:
            break
    if not one_sided:
        activations, cotangent = state.activations, state.cotangent
    explained = tuple(f"{link.name}.{name}" for link in chain[index:] for name, _ in link.module.named_parameters())
    return Anchor(chain[index].name, activations, cotangent, one_sided, explained, state.error)

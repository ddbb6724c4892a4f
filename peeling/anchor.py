"""The shallowest place in the model whose activations the update determines, and the way there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from ..capture import CapturedUpdate, as_gradient, is_softmax
from ..capture.fitting import fit
from ..capture.forward import on_probes
from .chain import PROBE_IMAGES, TRANSPARENT, Link, trace_chain
from .check import confirm_chain
from .config import PeelingConfig
from .continuity import is_smooth_before
from .final_layer import peel_final_layer
from .layers import SHOWN_UP_TO, Solved, batch_norm_affine, peel_convolution, peel_linear, spread_error, worst
from .scaled_head import scale_words

# Units this close to zero, as a share of the largest, say how crowded a ReLU's output is there.
_CROWD = 0.05
# Fewer than so many units that are wrongly taken for shut are expected: then there are none.
_FEW = 0.1
# Units below so many uncertainties may be open or shut.
_DOUBTFUL = 20.0
# So many activations below zero tell how large errors are.
_MANY = 100


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
    scales: tuple[float, ...] = ()
    """The factor that clipping left each image, where the update was found to be scaled; empty otherwise."""
    continuous: tuple[str, ...] = ()
    """Parameters before this module whose gradients are continuous in the images: no ReLU or other kink lies in
    between.

    Behind a ReLU whose units open and shut as the images move, the cotangent jumps, and with it the gradient.
    """

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Anchor:
        """The same on another device and in another type, the model's."""
        return replace(
            self,
            activations=self.activations.to(device, dtype),
            cotangent=self.cotangent.to(device, dtype),
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
    uncertainty: float
    """Estimated largest absolute error of a single activation."""
    scales: tuple[float, ...] = ()


def peel(
    update: CapturedUpdate,
    model: nn.Module,
    labels: Int[Tensor, " batch"],
    config: PeelingConfig | None = None,
    scaled: bool = True,
) -> Peeling:
    """Solve layer after layer from the last one towards the image, as far as the update determines the activations.

    Args:
        update: What the client sent.
        model: The server's model; it is not changed.
        labels: The batch's labels, one per image.
        config: Tolerance and switch.
        scaled: Allow for clipping, where the gradient as it was sent makes no sense: it scales what each image gives.
    """
    config = config or PeelingConfig()
    update, model = fit(update, model)
    if not config.enabled:
        return Peeling(None, "Layer peeling is switched off.")
    if update.local is not None:
        steps = update.local.steps(update.image_count)
        return Peeling(
            None, f"Layer peeling needs a gradient, and the update is the weight delta of {steps} local step(s)."
        )
    update = as_gradient(update, model)
    if not is_softmax(update, model):
        return Peeling(None, f"Layer peeling is for cross-entropy, and the client's loss is {update.loss!r}.")
    mode, shape = update.batch_norm, update.image_shape

    def run(count: int) -> tuple[int, list[Link]]:
        return count, confirm_chain(trace_chain(model, shape, mode, count), model, shape, mode, count)

    count, chain = on_probes(run, shape, PROBE_IMAGES, update.image_count)
    if not chain:
        return Peeling(None, "Layer peeling needs a model that ends in a plain fully connected layer.")
    state = _start(chain, update, labels, config, scaled)
    if isinstance(state, str):
        return Peeling(None, state)
    if not state.error <= config.tolerance:
        return Peeling(None, _refusal(chain[-1], state.error, config.tolerance, len(labels)))
    anchor = _anchor(chain, state, config.tolerance)
    reason = "the model's structure ends the chain"
    while state.index > 0:
        below = _descend(chain, state, update)
        if isinstance(below, str):
            reason = below
            break
        if not below.error <= config.tolerance:
            reason = _undetermined(chain[below.index], below.error)
            break
        state = below
        anchor = _anchor(chain, state, config.tolerance)
    if is_smooth_before(model, shape, mode, anchor.module, count):
        explained = set(anchor.explained)
        anchor = replace(anchor, continuous=tuple(name for name in update.gradients if name not in explained))
    message = (
        f"Layer peeling recovered each image's activations at the input of module {anchor.module!r} "
        f"({len(anchor.explained)} parameter tensors explained, error {anchor.error:.1g}); it stopped there because "
        f"{reason}."
    )
    if state.scales:
        message += f" {scale_words(state.scales)}"
        anchor = replace(anchor, scales=state.scales)
    return Peeling(anchor, message)


def _undetermined(link: Link, error: float) -> str:
    where = f"the input of module {link.name!r} ({type(link.module).__name__})"
    if error == float("inf"):
        return f"{where} has more unknowns than the update has equations for it"
    return f"{where} is only known with an estimated error of {error:.1g}"


def _start(
    chain: list[Link], update: CapturedUpdate, labels: Tensor, config: PeelingConfig, scaled: bool
) -> _State | str:
    """At the input of the final layer, or why not."""
    last, gradients = chain[-1], update.gradients
    weight, bias = last.module.weight, getattr(last.module, "bias", None)
    assert isinstance(weight, Tensor)
    if f"{last.name}.weight" not in gradients:
        return f"Layer peeling needs the gradient of {last.name}.weight, which the update lacks (a frozen layer)."
    found = peel_final_layer(
        weight,
        bias,
        gradients[f"{last.name}.weight"],
        gradients.get(f"{last.name}.bias"),
        labels,
        behind_relu=_is_behind_relu(chain[:-1]),
        scaled=scaled,
        tolerance=config.tolerance,
        smoothing=update.facts.label_smoothing.value,
    )
    head = found.head
    spread = spread_error(head.features, head.error) if head.uncertainty is None else head.uncertainty
    scales = tuple(found.scales.tolist()) if bool((found.scales != 1).any()) else ()
    return _State(len(chain) - 1, head.features, head.cotangent, head.error, spread, scales)


def _refusal(last: Link, error: float, tolerance: float, batch: int) -> str:
    (classes,) = last.output_shape
    if batch >= classes:
        return f"Layer peeling needs fewer images than classes; the update has {batch} images and {classes} classes."
    return (
        f"Layer peeling stopped at {last.name}: the features behind the gradient have an estimated error of "
        f"{error:.2g}, above peeling.tolerance={tolerance:g} (noise, pruning, many images of one label, or a model "
        "that is very sure of the batch do this)."
    )


def _descend(chain: list[Link], state: _State, update: CapturedUpdate) -> _State | str:
    """From the input of one parameter layer to the input of the one before it, or why not."""
    index, uncertainty = state.index - 1, state.uncertainty
    activations, cotangent = state.activations, state.cotangent
    known = torch.ones_like(activations, dtype=torch.bool)
    unmasked, doubtful = cotangent, ~known
    while index >= 0 and not isinstance(chain[index].module, nn.Linear | nn.Conv2d):
        shape = chain[index].output_shape
        activations, cotangent, unmasked = _shaped(shape, activations, cotangent, unmasked)
        known, doubtful = _shaped(shape, known, doubtful)
        module = chain[index].module
        if isinstance(module, nn.ReLU):
            known = known & _open(activations, uncertainty)
            doubtful = doubtful | (activations <= _DOUBTFUL * uncertainty)
            activations, cotangent = activations * known, cotangent * known
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            scale, shift = (t.detach().double().cpu() for t in batch_norm_affine(module, activations.dim()))
            passed = scale.abs() > 1e-6 * scale.abs().max()  # a channel scaled to nothing says nothing about its input
            known = known & passed
            activations = torch.where(known, (activations - shift) / torch.where(passed, scale, 1.0), 0.0)
            cotangent, unmasked = cotangent * scale, unmasked * scale
            uncertainty = uncertainty / float(scale.abs()[passed].min())
        shape = chain[index].input_shape
        activations, cotangent, unmasked = _shaped(shape, activations, cotangent, unmasked)
        known, doubtful = _shaped(shape, known, doubtful)
        index -= 1
    if index < 0:
        return "the layer before it is not of a kind that can be solved"
    link, layer = chain[index], chain[index].module
    gradient = update.gradients.get(f"{link.name}.weight")
    if gradient is None:
        return f"the update lacks the gradient of {link.name}.weight (a frozen layer)"
    gradient, shape = gradient.cpu(), (len(activations), *link.input_shape)
    activations, cotangent, unmasked = _shaped(link.output_shape, activations, cotangent, unmasked)
    known, doubtful = _shaped(link.output_shape, known, doubtful)
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    if layer.bias is not None:
        bias = layer.bias.detach().double().cpu()
        activations = activations - (bias if isinstance(layer, nn.Linear) else bias[:, None, None])
    if isinstance(layer, nn.Linear):
        if len(shape) != 2:
            return f"{link.name} runs on more than one vector for each image"
        solved = peel_linear(layer, gradient, cotangent, activations, known)
    else:
        solved = peel_convolution(
            layer, shape, gradient, cotangent, activations, known, state.error, unmasked, doubtful
        )
        cotangent = cotangent if solved.cotangent is None else solved.cotangent
    solved = _non_negative(solved, chain[:index])
    error = worst(state.error, solved.error)
    below = _cotangent_below(layer, shape, cotangent)
    return _State(index, solved.activations, below, error, solved.uncertainty, state.scales)


def _shaped(shape: tuple[int, ...], *tensors: Tensor) -> list[Tensor]:
    return [tensor.reshape(len(tensor), *shape) for tensor in tensors]


def _open(activations: Tensor, uncertainty: float) -> Tensor:
    """Where the ReLU was open: above the numerical error of what was recovered."""
    return activations > 2 * uncertainty


def _doubt(activations: Tensor, cotangent: Tensor, uncertainty: float) -> float:
    """How far the cotangent before a ReLU may be off, relatively, by units that were open and are taken for shut.

    They cannot be seen, but how many there are shows in how crowded the units just above the line are.
    """
    largest = float(activations.max())
    if not 0 < largest < float("inf"):
        return float("inf")
    is_open = _open(activations, uncertainty)
    crowd = is_open & (activations <= 2 * uncertainty + _CROWD * largest)
    share = 2 * uncertainty / (_CROWD * largest)
    if share * int(crowd.sum()) < _FEW:
        return 0.0
    return share**0.5 * float((cotangent * crowd).norm() / (cotangent * is_open).norm())


def _cotangent_below(layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...], cotangent: Tensor) -> Tensor:
    weight = layer.weight.detach().double().cpu()
    if isinstance(layer, nn.Linear):
        return cotangent @ weight
    below = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        output = F.conv2d(below, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        return torch.autograd.grad(output, below, cotangent)[0]


def _non_negative(solved: Solved, before: list[Link]) -> Solved:
    """Activations that come out of a ReLU cannot be negative: a negative part is error that was not seen elsewhere."""
    if not _is_behind_relu(before) or solved.error == float("inf"):
        return solved
    below = solved.activations[solved.activations < 0]
    negative = float(below.norm() / solved.activations.norm())
    uncertainty = solved.uncertainty
    if solved.error <= SHOWN_UP_TO:
        uncertainty = min(uncertainty, _shown_error(solved.activations))
    error = worst(solved.error, negative)
    return replace(solved, activations=solved.activations.clamp_min(0), error=error, uncertainty=uncertainty)


def _shown_error(activations: Tensor) -> float:
    """The largest error of a single activation as units that are shut show it: half of them come out below zero."""
    below = activations[activations < 0]
    return -float(below.min()) if len(below) >= _MANY else float("inf")


def _is_behind_relu(before: list[Link]) -> bool:
    for link in reversed(before):
        if not isinstance(link.module, TRANSPARENT):
            return isinstance(link.module, nn.ReLU)
    return False


def _anchor(chain: list[Link], state: _State, tolerance: float) -> Anchor:
    """Moves the anchor in front of a ReLU that leads into the layer: its input has a derivative everywhere.

    Not where too many of the ReLU's units cannot be told open from shut: the cotangent before it would be wrong.
    """
    index, one_sided, error = state.index, False, state.error
    activations, cotangent = state.activations, state.cotangent
    for position in range(state.index - 1, -1, -1):
        activations, cotangent = _shaped(chain[position].output_shape, activations, cotangent)
        if isinstance(chain[position].module, nn.ReLU):
            doubt = _doubt(activations, cotangent, state.uncertainty)
            if doubt <= tolerance:
                is_open = _open(activations, state.uncertainty)
                activations, cotangent = _shaped(
                    chain[position].input_shape, activations * is_open, cotangent * is_open
                )
                one_sided, index, error = True, position, max(error, doubt)
            break
        if not isinstance(chain[position].module, TRANSPARENT):
            break
        activations, cotangent = _shaped(chain[position].input_shape, activations, cotangent)
    if not one_sided:
        activations, cotangent = state.activations, state.cotangent
    smooth = index
    while smooth > 0 and not isinstance(chain[smooth - 1].module, nn.ReLU):
        smooth -= 1
    return Anchor(
        chain[index].name,
        activations,
        cotangent,
        one_sided,
        _parameters(chain[index:]),
        error,
        continuous=_parameters(chain[smooth:index]),
    )


def _parameters(links: list[Link]) -> tuple[str, ...]:
    return tuple(f"{link.name}.{name}" for link in links for name, _ in link.module.named_parameters())

"""The shallowest place in the model whose activations the update determines, and the way there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..capture import CapturedUpdate, LabelError, OneLook, as_gradient, is_softmax
from ..capture.fitting import fit
from ..capture.forward import on_probes
from .chain import PROBE_IMAGES, Link, trace_chain
from .check import confirm_chain
from .config import PeelingConfig
from .continuity import is_smooth_before
from .descent import RULE, Passage, State, descend, is_behind_relu, open_units, pass_down
from .factors import describe, distinct_from_one
from .head.ways import peel_final_layer
from .kinds import Needs
from .layers import spread_error
from .record import PeelingRecord
from .recording import record_chain
from .refusals import Refused, Why

_STRUCTURE = "the model's structure ends the chain of layers there"
_NO_FINAL_LAYER = "Layer peeling needs a model that ends in a plain fully connected layer."


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
    """Derivative of the loss by that input, as it counts in the gradient that was sent: the mean loss, with
    ``scales``."""
    one_sided: bool
    """The module is a ReLU: where ``activations`` is zero its input is only known not to be positive."""
    explained: tuple[str, ...]
    """Parameters from this module on, whose gradients the activations account for."""
    error: float
    """Largest estimated relative error on the way."""
    scales: tuple[float, ...] = ()
    """By what each image counts beside what it would in the mean loss: below 1 by clipping, above 1 by a sum over the
    batch or a loss scaler. Empty where all are 1 within the error."""
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
    record: PeelingRecord | None = None
    """None where it was left out."""


def peel(
    update: CapturedUpdate,
    model: nn.Module,
    labels: Int[Tensor, " batch"],
    config: PeelingConfig | None = None,
    scaled: bool = True,
    look: OneLook | None = None,
    copies: Int[Tensor, " batch"] | None = None,
) -> Peeling:
    """Solve layer after layer from the last one towards the image, as far as the update determines the activations.

    Args:
        update: What the client sent.
        model: The server's model; it is not changed.
        labels: The batch's labels, one per image.
        config: Tolerance and switch.
        scaled: Allow for clipping, where the gradient as it was sent makes no sense: it scales what each image gives.
        look: At the final layer, where others ask it too.
        copies: How often each image counts where that is known; then labels are in rising order.
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
        return Peeling(None, _NO_FINAL_LAYER)
    state = _start(chain, update, model, labels, config, scaled, look or OneLook(), copies)
    if isinstance(state, Peeling):
        return state
    if not state.error <= config.tolerance:
        message = _refusal(chain[-1], state.error, config.tolerance, len(labels))
        return Peeling(None, message, record_chain(chain, [], None, None, message, config.tolerance, shape))
    factor_error = state.error
    passage = pass_down(chain, state, update.gradients)
    anchor = _anchor(chain, state, passage, config.tolerance)
    states, refused = [state], None
    while state.index > 0:
        below = descend(chain, state, passage, update.gradients)
        if isinstance(below, State) and not below.error <= config.tolerance:
            name = chain[below.index].name
            below = Refused(RULE, name, Why.INEXACT, below.unknowns, below.equations, error=below.error)
        if isinstance(below, Refused):
            refused = below
            break
        state, passage = below, pass_down(chain, below, update.gradients)
        anchor = _anchor(chain, state, passage, config.tolerance)
        states.append(state)
    if is_smooth_before(model, shape, mode, anchor.module, count):
        explained = set(anchor.explained)
        anchor = replace(anchor, continuous=tuple(name for name in update.gradients if name not in explained))
    message = (
        f"Layer peeling recovered each image's activations at the input of module {anchor.module!r} "
        f"({len(anchor.explained)} parameter tensors explained, error {anchor.error:.1g}); {_why(refused)}."
    )
    if not anchor.one_sided and _leads_in(chain, state, passage):
        message += (
            " It stays behind the ReLU there: units near zero may have been open or shut, which leaves the derivative "
            f"in front of it uncertain by {passage.error:.1g}."
        )
    counts = describe(anchor.scales, factor_error) if copies is None else ""
    message = " ".join(filter(None, (message, counts)))
    reason = "" if refused is not None or chain[0].reads_images else f"{_STRUCTURE.capitalize()}."
    record = record_chain(chain, states, passage, refused, reason, config.tolerance, shape)
    return Peeling(anchor, message, record)


def _why(refused: Refused | None) -> str:
    if refused is None:
        return _STRUCTURE
    return f"it stopped there because of the input of module {refused.value!r}: {refused.words}"


def _start(
    chain: list[Link],
    update: CapturedUpdate,
    model: nn.Module,
    labels: Tensor,
    config: PeelingConfig,
    scaled: bool,
    look: OneLook,
    copies: Tensor | None,
) -> State | Peeling:
    """At the input of the final layer, or what there is to say where peeling does not begin."""
    name = chain[-1].name
    if f"{name}.weight" not in update.gradients:
        message = f"Layer peeling needs the gradient of {name}.weight, which the update lacks (a frozen layer)."
        return Peeling(None, message)
    try:
        layer = look.final_layer(update, model)
    except LabelError:
        return Peeling(None, _NO_FINAL_LAYER)
    if layer.name != name:
        return Peeling(None, _NO_FINAL_LAYER)
    found = peel_final_layer(
        layer,
        labels,
        behind_relu=is_behind_relu(chain[:-1]),
        scaled=scaled,
        tolerance=config.tolerance,
        look=look,
        copies=copies,
    )
    head = found.head
    spread = spread_error(head.features, head.error)
    if head.uncertainty is not None:
        spread = head.uncertainty.expand_as(head.features)
    scales = distinct_from_one(found.scales.tolist(), head.error)
    return State(len(chain) - 1, head.features, head.cotangent, head.error, spread, scales)


def _refusal(last: Link, error: float, tolerance: float, batch: int) -> str:
    (classes,) = last.output_shape
    if batch >= classes:
        return f"Layer peeling needs fewer images than classes; the update has {batch} images and {classes} classes."
    found = "the gradient does not determine the features behind it"
    if math.isfinite(error):
        found = f"the features have an estimated error of {error:.2g}, above peeling.tolerance={tolerance:g}"
    return (
        f"Layer peeling stopped at {last.name}: {found} (noise, pruning, many images of one label, or a model that is "
        "very sure of the batch do this)."
    )


def _anchor(chain: list[Link], state: State, passage: Passage, tolerance: float) -> Anchor:
    """Moves the anchor in front of a ReLU that leads into the layer: its input has a derivative everywhere.

    Not where too many of the ReLU's units cannot be told open from shut: the cotangent before it would be wrong.
    """
    index, one_sided, error = state.index, False, max(state.error, passage.above)
    activations, cotangent = state.activations, state.cotangent
    if _leads_in(chain, state, passage) and passage.error <= tolerance:
        assert passage.relu is not None
        index, one_sided, error = passage.relu, True, max(error, passage.error)
        activations, cotangent = open_units(passage, state, chain[index].input_shape)
    smooth = index
    while smooth > 0 and chain[smooth - 1].kind.needs is Needs.NOTHING:
        smooth -= 1
    return Anchor(
        chain[index].name,
        activations,
        cotangent,
        one_sided,
        _parameters(chain[index:]),
        error,
        state.scales,
        continuous=_parameters(chain[smooth:index]),
    )


def _leads_in(chain: list[Link], state: State, passage: Passage) -> bool:
    """Whether the passage begins with a ReLU."""
    relu = passage.relu
    return relu is not None and all(link.kind.keeps_numbers for link in chain[relu + 1 : state.index])


def _parameters(links: list[Link]) -> tuple[str, ...]:
    return tuple(f"{link.name}.{name}" for link in links for name, _ in link.module.named_parameters())

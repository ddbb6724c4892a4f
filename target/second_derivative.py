"""The derivative of a gradient by the images: given where torch lacks it, and asked for before any agent begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..capture import BatchNormMode, CapturedUpdate, ModelError, client_mode
from ..capture.forward import first_line, gradient, node_names, on_probes
from ..capture.functional_layers import functional_layers_called
from ..peeling import Anchor
from .assumed_epoch import assumed_epoch


def hard_sigmoid(values: Tensor, inplace: bool = False) -> Tensor:
    """``relu6(x + 3) / 6``, what torch's own hard sigmoid computes in one piece, which has no second derivative.

    Args:
        values: Of any shape.
        inplace: Write on them.
    """
    result = F.relu6(values + 3) / 6
    return values.copy_(result) if inplace else result


# What a model may call, as a module, as a function or as an operation. Its value is the same, and its derivative too.
_COMPOSED: dict[Any, Callable[..., Tensor]] = {
    F.hardsigmoid: hard_sigmoid,
    torch._C._nn.hardsigmoid: hard_sigmoid,
    torch._C._nn.hardsigmoid_: lambda values: hard_sigmoid(values, inplace=True),
    torch.ops.aten.hardsigmoid: hard_sigmoid,
    torch.ops.aten.hardsigmoid.default: hard_sigmoid,
}
_LACKING = {"HardsigmoidBackward"}
# What stands in a graph for a derivative that once_differentiable cut off; no path to the images leads over it, so that
# torch would leave its part of the derivative out without a word.
_ONCE = "torch::autograd::Error"


class _Composed(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _COMPOSED.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def twice_differentiable(model: nn.Module, mode: BatchNormMode, composed: bool) -> Iterator[None]:
    """`client_mode`, with operations that have no second derivative composed of some that have one.

    Args:
        model: See there.
        mode: See there.
        composed: Whether there are any, see `needs_composing`: watching for them costs a little in every step.
    """
    with client_mode(model, mode):
        if not composed:
            yield
            return
        with _Composed():
            yield


def needs_composing(model: nn.Module, update: CapturedUpdate) -> bool:
    """Whether the model, anywhere in its pass, calls what `twice_differentiable` composes.

    Raises:
        ModelError: It does not take the client's batch.
    """

    def run(count: int) -> bool:
        with torch.enable_grad(), client_mode(model, update.batch_norm):
            return bool(_LACKING & node_names(model(_images(model, update, count))))

    return on_probes(run, update.image_shape, _fewest(update), client_batch(update))


def require_second_derivative(model: nn.Module, update: CapturedUpdate, anchor: Anchor | None) -> None:
    """Return quietly when the gradient that the attack matches can be differentiated by the images.

    Args:
        model: The server's model.
        update: Must fit it.
        anchor: What was peeled: layers behind it are not differentiated.

    Raises:
        ModelError: It cannot, or the model does not take the client's batch.
    """
    explained = set(anchor.explained) if anchor is not None else set()
    named = dict(model.named_parameters())
    parameters = [named[name] for name in update.gradients if name not in explained]
    if not parameters:
        return

    def run(count: int) -> None:
        images = _images(model, update, count)
        with torch.enable_grad(), twice_differentiable(model, update.batch_norm, composed=True):
            if anchor is None:
                logits = model(images)
                value = F.cross_entropy(logits, torch.zeros(count, dtype=torch.int64, device=logits.device))
            else:
                value = forward_to(model, images, anchor.module).square().sum()
            _differentiate_twice(value, parameters, images)

    on_probes(run, update.image_shape, _fewest(update), client_batch(update))


def _differentiate_twice(value: Tensor, parameters: Sequence[Tensor], images: Tensor) -> None:
    if not value.requires_grad:
        return  # the layers before it run under no_grad, which is told elsewhere
    found = gradient(value, parameters, create_graph=True)
    squares = [derivative.square().sum() for derivative in found if derivative.requires_grad]
    if not squares:
        return
    total = torch.stack(squares).sum()
    if _ONCE in node_names(total):
        raise _no_second_derivative("the backward pass of a function of its own is marked with once_differentiable")
    try:
        torch.autograd.grad(total, images, allow_unused=True)
    except RuntimeError as error:
        raise _no_second_derivative(first_line(error)) from error


def _no_second_derivative(reason: str) -> ModelError:
    return ModelError(
        f"the model's gradient has no derivative by the images, along which the attack descends ({reason}); replace "
        "the operation that is named by others that compute the same"
    )


class _Reached(Exception):  # noqa: N818 - it is no error
    """Carries a module's input out of the forward pass; what lies behind it need not be computed."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def forward_to(model: nn.Module, images: Tensor, name: str, *, output: bool = False) -> Tensor:
    """The input of a module, by name, for these images; or its output."""

    def stop(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _Reached(inputs[0])

    def left(module: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> None:
        raise _Reached(result)

    layer = model.get_submodule(name)
    handle = layer.register_forward_hook(left) if output else layer.register_forward_pre_hook(stop)
    try:
        model(images)
        # Its weights may be handed to a function.
        with functional_layers_called(model, (name,)):
            model(images)
    except _Reached as reached:
        return reached.value
    finally:
        handle.remove()
    raise RuntimeError(f"the model did not run its module {name!r}")


def client_batch(update: CapturedUpdate) -> int:
    """How many images at most the attack gives the model at once."""
    return update.image_count if update.local is None else max(map(len, assumed_epoch(update)))


def _fewest(update: CapturedUpdate) -> int:
    """How many images a batch must have: batch norm in train mode refuses one value per feature."""
    return 1 if update.batch_norm is BatchNormMode.EVAL else 2


def _images(model: nn.Module, update: CapturedUpdate, count: int) -> Tensor:
    like = next(model.parameters())
    images = torch.randn(count, *update.image_shape, generator=torch.Generator().manual_seed(0))
    return images.to(like).requires_grad_()

"""Running a model of which nothing is known but that a client trains it: what it may do, and what is refused."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointFunction

from .weights import ModelError

T = TypeVar("T")

_LONGEST_REASON = 300


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Run a model so that its gradient has a derivative wherever torch knows of one, and its inputs stay as they are.

    Attention and recurrent layers use their plain implementations, the only ones with a second derivative; what is
    compiled runs as it is written. A model that writes on its input is given a copy. An output that is no tensor is
    refused.

    Args:
        model: Called inside; any module below it is left alone.

    Raises:
        ModelError: (by the model's call) It returns something else than logits.
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if "torch._dynamo" in sys.modules:  # without it nothing is compiled, and asking for it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if _is_recurrent_on_gpu(model):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        for handle in (model.register_forward_pre_hook(_copied), model.register_forward_hook(_require_logits)):
            stack.callback(handle.remove)
        yield


def _is_recurrent_on_gpu(model: nn.Module) -> bool:
    on_gpu = any(parameter.is_cuda for parameter in itertools.islice(model.parameters(), 1))
    return on_gpu and any(isinstance(module, nn.RNNBase) for module in model.modules())


def _copied(_: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)


def _require_logits(model: nn.Module, _: tuple[object, ...], output: object) -> None:
    if not isinstance(output, Tensor):
        raise ModelError(
            f"the model, a {type(model).__name__}, returns {_described(output)}; it must return its logits alone, a "
            f"tensor of shape (batch, classes): model.register_forward_hook(lambda model, inputs, output: "
            f"{_example(output)}) makes it do so and changes no name"
        )


def _described(output: object) -> str:
    if isinstance(output, dict):
        return f"a dictionary of {', '.join(map(repr, list(output)[:5]))}"
    return f"a {type(output).__name__}" + (f" of {len(output)}" if isinstance(output, tuple | list) else "")


def _example(output: object) -> str:
    """How the logits are taken from such an output, most likely."""
    if isinstance(output, dict) and type(output) is dict:
        key = "logits" if "logits" in output else next(iter(output), "logits")
        return f"output[{key!r}]"
    return "output[0]" if type(output) in (tuple, list) else "output.logits"


def on_probes(run: Callable[[int], T], shape: Sequence[int], wanted: int, count: int) -> T:
    """What a function of the model finds with so many images at once, or with a batch of the client's size where the
    model takes no other.

    Args:
        run: Given the number of images.
        shape: Of one image, for the message.
        wanted: How many would be best.
        count: Of the client's batch.

    Raises:
        ModelError: The model takes neither.
    """
    try:
        return run(wanted)
    except ModelError:
        raise
    # The user's own code may raise anything.
    except Exception as error:
        if count == wanted:
            raise cannot_take(error, count, shape) from error
    try:
        return run(count)
    except ModelError:
        raise
    except Exception as error:
        raise cannot_take(error, count, shape) from error


def run(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's logits for a batch of the client's.

    Raises:
        ModelError: It does not take the batch.
    """
    try:
        logits: Tensor = model(inputs)
    except ModelError:
        raise
    # The user's own code may raise anything.
    except Exception as error:
        raise cannot_take(error, len(inputs), inputs.shape[1:]) from error
    return logits


def cannot_take(error: Exception, count: int, shape: Sequence[int]) -> ModelError:
    """What to tell when the model fails on a batch of the client's own size."""
    return ModelError(
        f"the model cannot take a batch of {count} images of shape {tuple(shape)} ({first_line(error)}); give the "
        "model that the client trains, and the shape of its images"
    )


def gradient(
    output: Tensor, parameters: Sequence[Tensor], grad_outputs: Tensor | None = None, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """One derivative for each parameter, zero for one that the output does not depend on.

    Args:
        output: What is differentiated.
        parameters: By what.
        grad_outputs: The cotangent of an output that is no number.
        create_graph: Whether the result can be differentiated again.

    Raises:
        ModelError: The model cannot be differentiated so.
    """
    if any(isinstance(node, CheckpointFunction._backward_cls) for node in functions_of(output)):
        # Its layers are not even seen: their derivatives would be zero, or an error.
        raise ModelError(
            "the model checkpoints its activations with use_reentrant=True, which has no derivative by chosen tensors; "
            "give torch.utils.checkpoint.checkpoint use_reentrant=False, which makes the same gradient"
        )
    try:
        return torch.autograd.grad(
            output, parameters, grad_outputs, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    except RuntimeError as error:
        raise ModelError(
            f"the model's gradient cannot be taken ({first_line(error)}); replace the operation that fails by one that "
            "has a derivative"
        ) from error


def first_line(error: Exception) -> str:
    """The kind of an error and its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:_LONGEST_REASON]}" if lines else type(error).__name__


def node_names(output: Tensor) -> set[str]:
    """What torch calls the nodes in the graph of a tensor, less the number that it appends."""
    return {node.name().rstrip("0123456789") for node in functions_of(output)}


def functions_of(output: Tensor) -> set[Any]:
    """The nodes in torch's graph of a tensor."""
    seen, left = set[Any](), [output.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [following for following, _ in node.next_functions]
    return seen

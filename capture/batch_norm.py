"""Running a model's batch-norm layers as the client ran them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

# The public names (BatchNorm1d/2d/3d, SyncBatchNorm) have this class in common.
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import UpdateError
from .facts import BatchNormMode
from .forward import differentiable, run


def batch_norm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch-norm layers that keep running statistics, by module name, in the model's order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }


@contextmanager
def client_mode(model: nn.Module, mode: BatchNormMode | str) -> Iterator[nn.Module]:
    """Run the model as the client ran it; whatever runs inside cannot change the running statistics.

    Batch norm uses running statistics in ``eval`` and the batch's own in both train modes. Everything else (dropout,
    stochastic depth, auxiliary heads) stays in evaluation mode. The model's gradient has a derivative, see
    `differentiable`. Every module's flags are put back at the end. Not for use from two threads on one model.

    Args:
        model: Any module; its gradients may be differentiated again.
        mode: ``eval``, ``train_shared`` or ``train_private``.
    """
    mode = BatchNormMode(mode)
    batch = mode is not BatchNormMode.EVAL
    training = [(module, module.training) for module in model.modules()]
    norms = [module for module, _ in training if isinstance(module, _BatchNorm)] if batch else []
    tracking = [(module, module.track_running_stats) for module in norms]
    try:
        # Attributes instead of model.eval(): some models override train() to keep layers frozen.
        for module, _ in training:
            _set_training(module, batch and isinstance(module, _BatchNorm))
        for norm in norms:
            # Without tracking the buffers are not even passed to the kernel. (Momentum 0 would still turn them into
            # NaN through 0 * NaN when a candidate diverges.)
            norm.track_running_stats = False
        with differentiable(model):
            yield model
    finally:
        for module, flag in training:
            _set_training(module, flag)
        for norm, flag in tracking:
            norm.track_running_stats = flag


def _set_training(module: nn.Module, flag: bool) -> None:
    """Only where it differs: an attribute of a module is slow to set, and a step of an attack does this for each."""
    if module.training != flag:
        module.training = flag


@contextmanager
def recording_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Run the model as a ``train_shared`` client does, running statistics moving as they really do.

    Read them with ``running_buffers`` before leaving: on the way out the old ones are put back.
    """
    before = running_buffers(model)
    with client_mode(model, BatchNormMode.TRAIN_SHARED):
        for layer in batch_norm_layers(model).values():
            layer.track_running_stats = True
        try:
            yield model
        finally:
            named = dict(model.named_buffers())
            with torch.no_grad():
                for name, value in before.items():
                    named[name].copy_(value)


def running_buffers(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every batch-norm layer's running buffers, by buffer name."""
    copies: dict[str, Tensor] = {}
    for name, layer in batch_norm_layers(model).items():
        for kind in ("running_mean", "running_var", "num_batches_tracked"):
            buffer = getattr(layer, kind)
            if buffer is not None:
                copies[buffer_name(name, kind)] = buffer.detach().clone()
    return copies


def values_per_feature(model: nn.Module, images: Float[Tensor, "batch channel height width"]) -> dict[str, list[int]]:
    """How many values per feature each batch-norm layer sees, one entry per call, found by one forward pass.

    Args:
        model: Left as it is.
        images: Only their shape, type and device matter.
    """
    counts: dict[str, list[int]] = {name: [] for name in batch_norm_layers(model)}
    handles = []
    for name, layer in batch_norm_layers(model).items():

        def note(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            counts[name].append(inputs[0].numel() // inputs[0].shape[1])

        handles.append(layer.register_forward_pre_hook(note))
    try:
        with torch.no_grad(), client_mode(model, BatchNormMode.EVAL):
            run(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def require_batch_statistics(model: nn.Module, inputs: Float[Tensor, "batch channel height width"]) -> None:
    """Return quietly when each batch-norm layer sees enough values to normalise such a batch by its own statistics.

    Raises:
        UpdateError: A layer sees a single value per feature.
    """
    starved = [name for name, calls in values_per_feature(model, inputs).items() if calls and min(calls) < 2]
    if starved:
        raise UpdateError(
            f"batch norm in train mode needs at least 2 values per feature, and layer {starved[0]!r} sees 1 at "
            f"{inputs.shape[0]} image(s) of {inputs.shape[2]}x{inputs.shape[3]} pixels; "
            "use a larger batch or image, or batch norm in eval mode"
        )


def buffer_name(layer: str, buffer: str) -> str:
    """Of a layer in the model."""
    return f"{layer}.{buffer}" if layer else buffer

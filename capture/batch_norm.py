"""Running a model's batch-norm layers as the client ran them, and reading the batch's statistics off what it shared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

# The public names (BatchNorm1d/2d/3d, SyncBatchNorm) have this class in common.
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import UpdateError
from .facts import BatchNormMode
from .forward import differentiable, run
from .update import CapturedUpdate


@dataclass(frozen=True)
class RunningStatistics:
    """One layer's running buffers: mean, *unbiased* variance, and how many batches went into them."""

    mean: Float[Tensor, " feature"]
    var: Float[Tensor, " feature"]
    batches: int | None = None


@dataclass(frozen=True)
class BatchNormStatistics:
    """What an attacker may hold a layer's input statistics against: mean and *biased* variance per feature."""

    mean: Float[Tensor, " feature"]
    var: Float[Tensor, " feature"]
    exact: bool
    """True: these are the private batch's own statistics. False: the server's running statistics, a prior."""


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
                copies[_join(name, kind)] = buffer.detach().clone()
    return copies


def recover_batch_statistics(
    before: RunningStatistics, after: RunningStatistics, momentum: float | None, count: int
) -> BatchNormStatistics:
    """The statistics of the one batch that moved ``before`` to ``after``, up to rounding.

    PyTorch updates ``after = before + m (batch - before)``, so ``batch = before + (after - before) / m``, where m is
    the momentum, or 1 / (number of batches) when the momentum is None. The variance that enters is the unbiased one;
    the layer normalises with the biased one, ``(count - 1) / count`` of it.

    Args:
        before: The server's buffers.
        after: The client's buffers after exactly one step.
        momentum: The layer's setting, in (0, 1], or None for the cumulative average.
        count: How many values per feature the batch has, B*H*W at the layer's input; at least 2.

    Returns:
        Mean and biased variance in the dtype of ``after``, computed in float64.

    Raises:
        UpdateError: The momentum or the counts do not allow it.
    """
    if count < 2:
        raise UpdateError(f"a batch-norm layer sees {count} value per feature; a batch variance needs at least 2")
    if momentum is None:
        batches = after.batches if after.batches is not None else (before.batches or 0) + 1
        if batches < 1:
            raise UpdateError(f"num_batches_tracked is {batches} after the client's step; it must be at least 1")
        momentum = 1.0 / batches
    if not 0 < momentum <= 1:
        raise UpdateError(
            f"a batch-norm layer has momentum {momentum}; the batch statistics can be recovered for 0 < momentum <= 1"
        )
    old_mean, old_var = before.mean.double(), before.var.double()
    mean = old_mean + (after.mean.double().to(old_mean.device) - old_mean) / momentum
    var = old_var + (after.var.double().to(old_var.device) - old_var) / momentum
    biased = (var * ((count - 1) / count)).clamp_min(0)
    return BatchNormStatistics(mean.to(before.mean.dtype), biased.to(before.var.dtype), exact=True)


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


def batch_norm_targets(update: CapturedUpdate, model: nn.Module) -> dict[str, BatchNormStatistics]:
    """What the attacker knows about the input statistics of each batch-norm layer, by module name.

    ``train_shared``: the private batch's own statistics, recovered from what was shared; after several local steps
    their average as ``step_shares`` weighs them. Otherwise, and for a layer that is used more or less than once per
    pass or never updates its statistics: the server's running statistics.

    Args:
        update: Must fit the model (``update.require_match``).
        model: The server's model, before the client's step.

    Returns:
        An empty dict for a model without batch norm.
    """
    layers = batch_norm_layers(model)
    counts = _values_per_step(update, model)
    steps = 1 if update.local is None else update.local.steps(update.image_count)
    targets: dict[str, BatchNormStatistics] = {}
    for name, layer in layers.items():
        before = _statistics(running_buffers(layer), "")
        if name in counts and update.buffers is not None:
            after = _statistics(update.buffers, name)
            momentum = layer.momentum if steps == 1 else _momentum_of_steps(layer.momentum, before, after, steps)
            targets[name] = recover_batch_statistics(before, after, momentum, counts[name][0])
        else:
            targets[name] = BatchNormStatistics(before.mean, before.var, exact=False)
    return targets


def step_shares(update: CapturedUpdate, model: nn.Module) -> dict[str, list[tuple[float, float]]]:
    """How the statistics of each local step enter ``batch_norm_targets``, for the layers whose statistics were shared.

    With momentum m, running buffers after T steps are ``(1-m)^T before + sum_t m (1-m)^(T-1-t) batch_t``, of means and
    of *unbiased* variances.

    Returns:
        By module name, for each step the weight of its mean and the weight of its *biased* variance.
    """
    layers, found = batch_norm_layers(model), {}
    for name, counts in _values_per_step(update, model).items():
        momentum = layers[name].momentum
        # The cumulative average (momentum None) weighs all steps alike.
        raw = [1.0 if momentum is None else (1 - momentum) ** later for later in reversed(range(len(counts)))]
        biased = (counts[0] - 1) / counts[0]
        found[name] = [
            (share / sum(raw), share / sum(raw) * count / (count - 1) * biased)
            for share, count in zip(raw, counts, strict=True)
        ]
    return found


def _values_per_step(update: CapturedUpdate, model: nn.Module) -> dict[str, list[int]]:
    """Values per feature in each step, for the layers whose batch statistics can be recovered from shared buffers."""
    layers = batch_norm_layers(model)
    if update.buffers is None or not layers:
        return {}
    sizes = [update.image_count]
    if update.local is not None:
        sizes = [len(batch) for batch in update.local.batches(update.image_count)] * update.local.epochs
    parameter = next(model.parameters())
    calls = {
        size: values_per_feature(model, parameter.new_zeros((size, *update.image_shape))) for size in sorted(set(sizes))
    }
    return {
        name: [calls[size][name][0] for size in sizes]
        for name, layer in layers.items()
        if len(calls[sizes[0]][name]) == 1 and layer.momentum != 0
    }


def _momentum_of_steps(
    momentum: float | None, before: RunningStatistics, after: RunningStatistics, steps: int
) -> float:
    """The one momentum that moves buffers as far as so many steps do."""
    if momentum is not None:
        return 1 - (1 - momentum) ** steps
    batches = after.batches if after.batches is not None else (before.batches or 0) + steps
    return steps / max(batches, steps)


def _statistics(buffers: dict[str, Tensor], layer: str) -> RunningStatistics:
    try:
        mean, var = buffers[_join(layer, "running_mean")], buffers[_join(layer, "running_var")]
    except KeyError as error:
        raise UpdateError(f"the update lacks the batch-norm buffer {error}; send all running statistics") from None
    batches = buffers.get(_join(layer, "num_batches_tracked"))
    return RunningStatistics(mean, var, None if batches is None else int(batches))


def _join(layer: str, buffer: str) -> str:
    return f"{layer}.{buffer}" if layer else buffer

"""The batch's own statistics, read off the running buffers that a client shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from .batch_norm import batch_norm_layers, buffer_name, running_buffers, values_per_feature
from .errors import UpdateError
from .update import CapturedUpdate

ROUNDED = 2.0**-8
"""What bfloat16 makes of a number is off by less, relatively: buffers may have come in it."""


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
    mean, var = SentStatistics(before, after, momentum, count).batch
    biased = (var * ((count - 1) / count)).clamp_min(0)
    return BatchNormStatistics(mean.to(before.mean.dtype), biased.to(before.var.dtype), exact=True)


def batch_norm_targets(update: CapturedUpdate, model: nn.Module) -> dict[str, BatchNormStatistics]:
    """What the attacker knows about the input statistics of each batch-norm layer, by module name.

    ``train_shared``: the private batch's own statistics, recovered from what was shared; after several local steps
    their average as ``step_shares`` weighs them. Otherwise, and for a layer that is used more or less than once per
    pass or never updates its statistics: the server's running statistics.

    Args:
        update: Its gradients must fit the model (``update.require_match``). Its buffers, which that looks at only where
            the weight hash is another, must be those of the model's layers (``update.buffer_mismatches``).
        model: The server's model, before the client's step.

    Returns:
        An empty dict for a model without batch norm.

    Raises:
        UpdateError: Buffers are missing or of another shape, or a momentum or counter allows no batch's statistics.
    """
    targets: dict[str, BatchNormStatistics] = {}
    sent = sent_statistics(update, model)
    for name, layer in batch_norm_layers(model).items():
        if name in sent:
            targets[name] = recover_batch_statistics(*sent[name])
        else:
            before = _statistics(running_buffers(layer), "")
            targets[name] = BatchNormStatistics(before.mean, before.var, exact=False)
    return targets


class SentStatistics(NamedTuple):
    """One layer's part of what ``recover_batch_statistics`` takes."""

    before: RunningStatistics
    after: RunningStatistics
    momentum: float | None
    """That moves the buffers as far as all of the client's steps do."""
    values: int
    """That the layer sees of each feature."""

    @property
    def share(self) -> float:
        """Of what the batch differs by from the server's, the part that the buffers moved.

        Raises:
            UpdateError: The momentum or the counts do not allow it.
        """
        return _share(self.before, self.after, self.momentum)

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance that moved the server's to those that came, in float64.

        Raises:
            UpdateError: The momentum or the counts do not allow it.
        """
        share, (before, after) = self.share, (self.before, self.after)
        mean, var = (
            old.double() + (new.double().to(old.device) - old.double()) / share
            for old, new in ((before.mean, after.mean), (before.var, after.var))
        )
        return mean, var


def _share(before: RunningStatistics, after: RunningStatistics, momentum: float | None) -> float:
    """Of what the batch differs by from the server's, the part that the buffers moved."""
    if momentum is None:
        batches = after.batches if after.batches is not None else (before.batches or 0) + 1
        if batches < 1:
            raise UpdateError(f"num_batches_tracked is {batches} after the client's step; it must be at least 1")
        momentum = 1.0 / batches
    if not 0 < momentum <= 1:
        raise UpdateError(
            f"a batch-norm layer has momentum {momentum}; the batch statistics can be recovered for 0 < momentum <= 1"
        )
    return momentum


def sent_statistics(update: CapturedUpdate, model: nn.Module) -> dict[str, SentStatistics]:
    """What the client's buffers say of each layer whose batch statistics can be recovered from them, by module name.

    Raises:
        UpdateError: The buffers of a layer are missing or of another shape.
    """
    steps = 1 if update.local is None else update.local.steps(update.image_count)
    layers, found = batch_norm_layers(model), dict[str, SentStatistics]()
    for name, counts in _values_per_step(update, model).items():
        assert update.buffers is not None
        before, after = _statistics(running_buffers(layers[name]), ""), _statistics(update.buffers, name)
        for ours, theirs in ((before.mean, after.mean), (before.var, after.var)):
            if ours.shape != theirs.shape:
                raise UpdateError(
                    f"running statistics of layer {name!r} have shape {tuple(theirs.shape)} in the update and "
                    f"{tuple(ours.shape)} in the model; send those of the same model"
                )
        momentum = layers[name].momentum
        if steps > 1:
            momentum = _momentum_of_steps(momentum, before, after, steps)
        found[name] = SentStatistics(before, after, momentum, counts[0])
    return found


def impossible_layers(update: CapturedUpdate, model: nn.Module) -> list[str]:
    """The layers whose buffers no batch can have made of the server's: its variance would be below zero, by more than
    rounding makes of it.

    Args:
        update: As ``batch_norm_targets`` takes it.
        model: The server's model, before the client's step.

    Raises:
        UpdateError: As ``batch_norm_targets``.
    """
    found = []
    for name, one in sent_statistics(update, model).items():
        old, sent = one.before.var.double(), one.after.var.double().to(one.before.var.device)
        if bool((one.batch[1] < -ROUNDED * (sent.abs() + old.abs()) / one.share).any()):
            found.append(name)
    return found


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
        mean, var = buffers[buffer_name(layer, "running_mean")], buffers[buffer_name(layer, "running_var")]
    except KeyError as error:
        raise UpdateError(f"the update lacks the batch-norm buffer {error}; send all running statistics") from None
    batches = buffers.get(buffer_name(layer, "num_batches_tracked"))
    return RunningStatistics(mean, var, None if batches is None else int(batches))

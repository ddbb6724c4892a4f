"""Which statistics of batch norm a candidate is held against."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..capture import CapturedUpdate, batch_norm_layers, batch_norm_targets


@dataclass(frozen=True)
class KnownStatistics:
    """What is known of the batch's statistics, and what a person should know of it."""

    targets: dict[str, tuple[Tensor, Tensor]]
    """Mean and variance, by module name."""
    messages: tuple[str, ...] = ()


def known_statistics(update: CapturedUpdate, model: nn.Module) -> KnownStatistics:
    """The batch's own statistics where they were shared, else the running ones where training has moved them.

    Whether it has is decided by the statistics themselves: the counter of batches is zero in converted weights too.

    Args:
        update: What is attacked.
        model: The server's model.
    """
    layers, targets, unused = batch_norm_layers(model), dict[str, tuple[Tensor, Tensor]](), 0
    for name, known in batch_norm_targets(update, model).items():
        if not known.exact and never_updated(layers[name]):
            unused += 1
            continue
        targets[name] = (known.mean, known.var)
    if not unused:
        return KnownStatistics(targets)
    message = f"The batch-norm prior skips {unused} layers whose running statistics were never updated."
    return KnownStatistics(targets, (message,))


def never_updated(layer: nn.Module) -> bool:
    """Whether the running statistics are those that a layer is made with: a mean of 0, a variance of 1."""
    mean, var = layer.running_mean, layer.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(var, Tensor)
    return not bool(mean.any()) and bool((var == 1).all())

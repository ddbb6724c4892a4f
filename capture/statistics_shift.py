"""Whether batch norm's running statistics moved while a client trained, or came back rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batch_norm import batch_norm_layers
from .counters import settle_counters

_COUNTER = "num_batches_tracked"
# A step of training moves statistics by the layer's momentum, usually a tenth, of what its batch differs by. Rounding
# to bfloat16 moves them by up to 2^-8, and averaging clients in half precision by less.
_MOVED = 1e-2
# Where the counter says that there were steps; layers of momentum 0.01 move as little.
_MOVED_AND_COUNTED = 1e-3
# Averaging in float32 changes them by less.
_AVERAGED = 1e-4
# A mean counts as no smaller than this share of its deviation: one that is near zero is rounded by more than itself.
_LEAST_MEAN = 1e-2
# Averaging in float32 leaves a counter off by less, relatively.
_COUNTER_ROUNDING = 1e-5
_ROUNDED_TO = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class StatisticsShift:
    """What became of the running statistics while the client trained."""

    largest: float
    """The largest relative change of a layer's running mean or variance; 0 where each is as it was up to its type."""
    counted: bool | None
    """Whether batch norm's counters say that there were steps; None where they did not come back."""

    @property
    def moved(self) -> bool:
        """Whether they are others than before, which rounding and averaging do not make of them."""
        return self.largest > (_MOVED_AND_COUNTED if self.counted else _MOVED)

    @property
    def unclear(self) -> bool:
        """Whether they are not taken for moved, and may be: no counter tells a small step from rounding."""
        return not self.moved and self.counted is not False and self.largest > _AVERAGED


def statistics_shift(before: nn.Module, after: Mapping[str, Tensor]) -> StatisticsShift | None:
    """How far the running statistics that came back are from the model's; None where some are missing.

    Args:
        before: With the statistics that the client was sent.
        after: What it sent back, by the model's names, in any type.
    """
    after = settle_counters(after)
    shifts, counters = [0.0], list[bool | None]()
    for name, layer in batch_norm_layers(before).items():
        prefix = f"{name}." if name else ""
        mean, var, counter = (after.get(f"{prefix}{one}") for one in ("running_mean", "running_var", _COUNTER))
        if mean is None or var is None:
            return None
        assert layer.running_mean is not None
        assert layer.running_var is not None
        least = _LEAST_MEAN * float(layer.running_var.detach().double().clamp_min(0).sqrt().norm())
        shifts += [_shift(layer.running_mean, mean, least), _shift(layer.running_var, var, 0.0)]
        if layer.num_batches_tracked is not None:
            counters.append(None if counter is None else _counted(int(layer.num_batches_tracked), int(counter)))
    known = [one for one in counters if one is not None]
    return StatisticsShift(max(shifts), any(known) if known and len(known) == len(counters) else None)


def _shift(before: Tensor, after: Tensor, least: float) -> float:
    """The relative change of one buffer; infinite where it is of another shape or not finite."""
    before, after = before.detach().cpu(), after.detach().cpu()
    if before.shape != after.shape:
        return float("inf")
    if _rounded(before, after):
        return 0.0
    old = before.double()
    change, size = float((after.double() - old).norm()), max(float(old.norm()), least)
    return change / size if change < float("inf") and size > 0 else float("inf")


def _rounded(before: Tensor, after: Tensor) -> bool:
    """Whether one is the other after a type of fewer bits."""
    types = (before.dtype, after.dtype, *_ROUNDED_TO)
    return any(torch.equal(before.to(one).to(after.dtype), after) for one in types) or torch.equal(
        after.to(before.dtype), before
    )


def _counted(before: int, after: int) -> bool:
    """Whether a counter went up, and not by rounding."""
    number = torch.tensor(float(before), dtype=torch.float64)
    if any(float(number.to(one)) == after for one in _ROUNDED_TO):
        return False
    return after - before > _COUNTER_ROUNDING * before

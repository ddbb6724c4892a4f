"""The learning rate of each local step, as the derivatives by the logits tell it.

The derivative by a visit's logits is ``c_t (softmax(z) - y) / b`` with c_t the number by which its step counts in the
delta. What the logits are is known, so that c_t follows from every visit, and all visits of one step have to agree on
it. Momentum m adds up the rates that follow, and weight decay d takes away from what they did: ``c_t = r_t (1 - d rate
(c_{t+1} + ... + c_T)) + m c_{t+1}``, in units of the rate that was told. In the average over K clients each visit's
derivative is a K-th of that, and every client shows rates of its own.

The weights before each step follow from what they moved by, so that without momentum and weight decay nothing rests on
these rates; with them the steps are taken apart again under the rates that were read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .local_steps import LocalSteps
from .rules import Derivation
from .rules.image_labels import fit_labels

# Rates that differ by less, or by fewer of their errors, are taken for the same.
_SAME, _ERRORS = 0.02, 5.0
_VAGUE = 0.02
# A visit whose derivative is farther from that of any label says nothing.
_CLEAR = 0.1


@dataclass(frozen=True)
class StepSizes:
    """What the steps are as large as."""

    rates: tuple[float, ...]
    """Of each step, over the learning rate that was told; of several clients each one's first, then each one's
    second."""
    error: float
    """Estimated, relative, of the worst of them."""
    clients: int = 1

    @property
    def common(self) -> tuple[float, ...] | None:
        """Of each of a client's steps; None where clients differ, as far as it is known."""
        by_step = [self.rates[at : at + self.clients] for at in range(0, len(self.rates), self.clients)]
        if any(max(some) - min(some) > self._line * max(some) for some in by_step):
            return None
        return tuple(sum(some) / len(some) for some in by_step)

    @property
    def constant(self) -> bool:
        """Whether all steps have one rate, as far as it is known."""
        low, high = min(self.rates), max(self.rates)
        return high - low <= self._line * high

    @property
    def as_told(self) -> bool:
        """Whether all have the one that was told."""
        return all(abs(rate - 1) <= self._line for rate in self.rates)

    @property
    def vague(self) -> bool:
        """Whether they are known so badly that even large differences would not show."""
        return self.error > _VAGUE

    @property
    def _line(self) -> float:
        return max(_SAME, _ERRORS * self.error)


def step_sizes(
    derivation: Derivation, steps: LocalSteps, factors: Sequence[float], smoothing: float = 0.0
) -> StepSizes | None:
    """By cross-entropy's derivative in every visit; None where it is not known, or shows no number for some step.

    Args:
        derivation: With the final layer's output and the derivative by it.
        steps: With the rate, and the sizes, that it rests on.
        factors: By which the loss of each step is larger than the mean over its images.
        smoothing: Of the labels, in [0, 1).
    """
    known, output = derivation.knowledge, derivation.graph.output
    arriving, logits = known.arriving.get(output), known.complete(output)
    if arriving is None or logits is None or not arriving.complete:
        return None
    counts, spreads = list[float](), [float((arriving.error + logits.error).max())]
    for part, factor in zip(steps.slices, factors, strict=True):
        found = _count(arriving.values[part] / factor, logits.values[part], smoothing)
        if found is None:
            return None
        counts.append(found[0] * steps.clients)
        spreads.append(found[1])
    rates = _rates(counts, steps)
    if rates is None or not min(rates) > 0:
        return None
    # What a step counts for holds what later ones do, and so do their errors.
    error = max(spreads) * (max(counts) / min(rates) if steps.momentum else 1.0)
    return StepSizes(rates, error, steps.clients)


def _count(
    derivative: Float[Tensor, "visit class"], logits: Float[Tensor, "visit class"], smoothing: float
) -> tuple[float, float] | None:
    """By how much the visits of a step count, and how far they are from agreeing on it."""
    found = fit_labels(derivative, logits, smoothing)
    if not bool((found.scales > 0).all()) or not float(found.off.max()) <= _CLEAR:
        return None
    usual = float(found.scales.median())
    return usual, float((found.scales / usual - 1).abs().max())


def _rates(counts: Sequence[float], steps: LocalSteps) -> tuple[float, ...] | None:
    """None where weight decay leaves nothing of what a step did, or turns it round."""
    found = list[float]()
    for step, count in enumerate(counts):
        later = counts[step + steps.clients :: steps.clients]
        # What a weight is multiplied with by all later steps, and what its velocity adds to them.
        kept = 1 - steps.weight_decay * steps.rate * sum(later)
        if not kept > 0:
            return None
        found.append((count - (steps.momentum * later[0] if later else 0.0)) / kept)
    return tuple(found)


def agree(one: StepSizes, steps: LocalSteps) -> bool:
    """Whether the steps were taken apart under the rates that they show.

    One factor for all changes nothing, but for weight decay. The error of the rates is left aside: steps that were
    taken apart under wrong ones make it.
    """
    ratios = torch.tensor(one.rates) / torch.tensor(steps.sizes or [1.0] * steps.each).repeat_interleave(one.clients)
    if steps.weight_decay:
        ratios = torch.cat([ratios, torch.ones(1)])
    return float(ratios.max() / ratios.min()) <= 1 + _SAME

"""What is known at the values of a graph: activations, derivatives, and which units were open, entry by entry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..layers import sizes
from ..units import Units


@dataclass(frozen=True)
class Known:
    """Numbers of every image at one value. Float64, on the CPU."""

    values: Float[Tensor, "image ..."]
    """Zero where they are not known."""
    known: Bool[Tensor, "image ..."]
    deviation: Float[Tensor, "image ..."]
    """Standard deviation of each entry's error, as it is estimated."""
    rule: str
    """That derived it."""

    @property
    def complete(self) -> bool:
        """Whether every entry is known."""
        return bool(self.known.all())

    @property
    def error(self) -> Float[Tensor, " image"]:
        """Estimated relative error of what is known of each image."""
        noise, size = (
            (tensor * self.known).flatten(1).norm(dim=1)
            for tensor in (self.deviation.expand_as(self.values), self.values)
        )
        return torch.where(size > 0, noise / size.clamp_min(1e-300), torch.where(noise > 0, torch.inf, 0.0))

    def shaken(self, seed: int = 0) -> Tensor:
        """The values as they might have been instead: off by their deviations."""
        random = torch.Generator().manual_seed(seed)
        return self.values + self.deviation * torch.randn(self.values.shape, generator=random, dtype=torch.float64)


def evenly(values: Tensor, error: Float[Tensor, " image"], rule: str) -> Known:
    """Numbers known everywhere whose error, relative to the image's own, is spread over all of them."""
    size = sizes(values)
    deviation = (error * size).reshape(-1, *(1 for _ in values.shape[1:])).expand_as(values)
    return Known(values, torch.ones_like(values, dtype=torch.bool), deviation, rule)


def merged(one: Known | None, other: Known) -> Known:
    """Both: where they meet, the one that is better known."""
    if one is None:
        return other
    ours = one.deviation.expand_as(one.values)
    theirs = other.deviation.expand_as(other.values)
    better = other.known & (~one.known | (theirs < ours))
    return Known(
        torch.where(better, other.values, one.values),
        one.known | other.known,
        torch.where(better, theirs, ours),
        f"{one.rule}, {other.rule}" if other.rule not in one.rule else one.rule,
    )


# Of an image's error, what all its entries may share: stated errors may be some times too small, and what later visits
# state rests on them.
_SHARED = 2.0


class _Shaken(Mapping[str, Known]):
    """Values off by their errors: each entry's own, and one that all entries of an image share. Sums over entries that
    are off independently hardly feel it."""

    def __init__(self, known: Mapping[str, Known], seed: int) -> None:
        self._known, self._seed = known, seed

    def __getitem__(self, value: str) -> Known:
        found = self._known[value]
        shared = _SHARED * found.error.reshape(-1, *(1 for _ in found.values.shape[1:])) * found.values
        return replace(found, values=found.shaken(self._seed) + shared)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


@dataclass(frozen=True)
class Knowledge:
    """All that was derived."""

    activations: Mapping[str, Known] = field(default_factory=dict)
    """By the name of the value."""
    arriving: Mapping[str, Known] = field(default_factory=dict)
    """The derivative of the loss by the value, through all operations that read it."""
    units: Mapping[str, Units] = field(default_factory=dict)
    """Which units of a rectifier were open, by its name."""
    unexplained: Mapping[str, float] = field(default_factory=dict)
    """Length of the error of the derivative in front of a rectifier that gradients show and no unit explains, by its
    name."""
    lengths: Float[Tensor, " image"] | None = None
    """Relative error of each image's length: a derivative that is too long by some factor makes activations too short
    by it, and no misfit shows that. Of visits also what each may be mixed by with others."""

    weights: Mapping[str, Float[Tensor, "step ..."]] = field(default_factory=dict)
    """Of a weight delta: the values of a parameter before each step, by its name."""
    weights_instead: Mapping[str, Float[Tensor, "step ..."]] = field(default_factory=dict)
    """What these might have been instead: made of activations and derivatives that are off by their errors."""
    examined: frozenset[str] = frozenset()
    """Convolutions whose gradient was asked which units behind them are on the wrong side."""
    mended: frozenset[str] = frozenset()
    """Those of them behind which units were, after their input was solved for."""

    def solved(self, found: Known) -> Known:
        """What an equation in derivatives gave, with the error that the equation cannot show."""
        if self.lengths is None:
            return found
        size = sizes(found.values)
        hidden = (self.lengths * size).reshape(-1, *(1 for _ in found.values.shape[1:]))
        return replace(found, deviation=(found.deviation.square() + hidden.square()).sqrt())

    def complete(self, value: str) -> Known | None:
        """Activations, where all of them are known."""
        found = self.activations.get(value)
        return found if found is not None and found.complete else None

    def with_activations(self, value: str, found: Known) -> Knowledge:
        """With these in the place of what was known of the value."""
        return replace(self, activations={**self.activations, value: found})

    def with_arriving(self, value: str, found: Known) -> Knowledge:
        """With this derivative."""
        return replace(self, arriving={**self.arriving, value: found})

    def with_weights(
        self, parameter: str, found: Float[Tensor, "step ..."], instead: Float[Tensor, "step ..."]
    ) -> Knowledge:
        """With the values of a parameter before each step, and what they might have been instead."""
        others = {**self.weights_instead, parameter: instead}
        return replace(self, weights={**self.weights, parameter: found}, weights_instead=others)

    @property
    def with_other_weights(self) -> Knowledge:
        """With what the weights of the steps might have been instead."""
        return replace(self, weights=self.weights_instead)

    @property
    def shaken(self) -> Knowledge:
        """All as it might have been instead; entries are made where they are asked for."""
        return replace(
            self.with_other_weights, activations=_Shaken(self.activations, 0), arriving=_Shaken(self.arriving, 1)
        )

    def with_units(self, rectifier: str, units: Units, unexplained: float = 0.0) -> Knowledge:
        """With these units, and the length of what they leave open of the derivative in front of them."""
        left = {**self.unexplained, rectifier: unexplained}
        return replace(self, units={**self.units, rectifier: units}, unexplained=left)

"""The taps' factors where each entry of the weight gradient is known as well as its own rounding lets it.

In a weight delta every entry is off by the rounding of its own weight, and weights near zero are rounded a thousand
times finer than the largest (`LocalSteps.deviation`). `factor_taps` counts all entries alike. From there the factors
follow by Gauss-Newton steps on ``sum_d |(G_d - Delta^T T_d A) / sigma_d|^2``: the two blocks of unknowns, cotangents
for given inputs and inputs for given cotangents, precondition the conjugate gradients that take both at once (in turn
they creep). What the same step makes of noise alone is how well they are known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from .conjugate_gradients import conjugate_gradients
from .taps import Factors, by_tap, over_images

# Of each channel so many entries, in unknowns, make the preconditioner: the others are known far less well.
_USED = 3
# Steps, and what each is followed to: in float32, since the next one mends what it leaves.
_STEPS, _ITERATIONS, _SETTLED = 2, 40, 3e-3
# Noise need not be followed as far.
_OF_NOISE = 15
# Of the deviations that were told, what the factors may leave: else noise is other than these say, and entries that
# count by them make the factors worse. Even noise that makes it 1.2 does; rounding of weights alone leaves 0.6 to 0.9.
_LEAST, _MOST = 1 / 3, 1.1
# Bytes that the preconditioner may take.
_LARGEST = 600_000_000


def operations_weighted(places: int, outputs: int, inputs: int, taps: int) -> float:
    """Of factors that are polished, and of what noise makes of them.

    Args:
        places: Of all images together.
        outputs: Channels.
        inputs: Channels.
        taps: Of the kernel.
    """
    followed = (_STEPS * _ITERATIONS + _OF_NOISE) * 8.0 * taps * outputs * inputs * places
    return followed + (_STEPS + 1) * (outputs + inputs) * 2.0 * _USED * places**3


def fits_weighted(places: int, outputs: int, inputs: int) -> bool:
    """Whether the preconditioner, a matrix of places for each channel, fits into memory.

    Args:
        places: Of all images together.
        outputs: Channels.
        inputs: Channels.
    """
    return 4 * places**2 * (outputs + inputs) <= _LARGEST


@dataclass(frozen=True)
class WeightedTaps:
    """The gradient of a convolution with taps, and where it is taken apart."""

    gradient: Float[Tensor, "output input height width"]
    deviation: Float[Tensor, "output input height width"]
    image_count: int
    size: tuple[int, int]

    def polished(self, factors: Factors) -> Factors | None:
        """Factors by all entries as well as they are known; None where that is no better, or where what they leave
        shows other noise than the deviations say: a delta that was defended, or sent in a narrower type.

        Args:
            factors: By entries that count alike.
        """
        inputs, cotangents = factors.inputs.flatten(0, 1), factors.cotangents.flatten(0, 1)
        before = left = self._left(inputs, cotangents)
        for _ in range(_STEPS):
            moved = self._moved(inputs, cotangents, left, _ITERATIONS)
            if moved is None:
                return None
            inputs, cotangents = inputs + moved[0], cotangents + moved[1]
            left = self._left(inputs, cotangents)
        if not float(left.norm()) <= float(before.norm()) or not _LEAST < _size(left, inputs, cotangents) < _MOST:
            return None
        own, theirs = inputs.reshape(factors.inputs.shape), cotangents.reshape(factors.cotangents.shape)
        misfit = float(left.norm() / (_by_tap(self.gradient) * self._weight).norm())
        return replace(factors, inputs=own, cotangents=theirs, misfit=misfit)

    def shaken(
        self, inputs: Float[Tensor, "place _"], cotangents: Float[Tensor, "place _"]
    ) -> tuple[Tensor, Tensor] | None:
        """Both as they might have been with as much noise as they leave, at least a deviation; None where they are
        singular.

        Args:
            inputs: Of every place.
            cotangents: Of every place.
        """
        left = self._left(inputs, cotangents)
        random = torch.Generator().manual_seed(0)
        noise = max(_size(left, inputs, cotangents), 1.0) * torch.randn(
            left.shape, generator=random, dtype=torch.float64
        )
        moved = self._moved(inputs, cotangents, noise, _OF_NOISE)
        return None if moved is None else (inputs + moved[0], cotangents + moved[1])

    def _left(self, inputs: Tensor, cotangents: Tensor) -> Tensor:
        """What is left of the gradient, ``(tap, output, input)``, in deviations."""
        made = torch.stack([cotangents.T @ shifted for shifted in self._shifted(inputs)])
        return (_by_tap(self.gradient) - made) * self._weight

    @cached_property
    def _weight(self) -> Tensor:
        return 1 / _by_tap(self.deviation)

    def _shifted(self, rows: Tensor, back: bool = False) -> list[Tensor]:
        """Rows as each tap sees them; ``back``: as the input sees the output's through it."""
        sign = -1 if back else 1
        shifts = by_tap(self.gradient)
        return [over_images(rows, (sign * row, sign * column), self.image_count, self.size) for row, column in shifts]

    def _moved(self, inputs: Tensor, cotangents: Tensor, left: Tensor, iterations: int) -> tuple[Tensor, Tensor] | None:
        """A Gauss-Newton step: what to add to both so that this much less is left."""
        by_input = _inverted(torch.stack(self._shifted(cotangents, back=True)), self._weight, outputs=False)
        by_output = _inverted(torch.stack(self._shifted(inputs)), self._weight, outputs=True)
        if by_input is None or by_output is None:
            return None
        own, theirs = inputs.float(), cotangents.float()
        shifted, back = torch.stack(self._shifted(own)), torch.stack(self._shifted(theirs, back=True))
        around = _Linearised(theirs, shifted, back, self._weight.float(), (by_input, by_output), self._shifted)
        found = around.solved(left.float(), iterations)
        return found if all(bool(torch.isfinite(one).all()) for one in found) else None


@dataclass(frozen=True)
class _Linearised:
    """What small steps of both factors make of the gradient, in deviations. Float32."""

    cotangents: Tensor
    at_inputs: Tensor
    """``(tap, place, input)``."""
    at_cotangents: Tensor
    """``(tap, place, output)``."""
    weight: Tensor
    """``(tap, output, input)``."""
    inverted: tuple[Tensor, Tensor]
    """Of each input's and each output's normal matrix, see `_inverted`."""
    shifted: Callable[[Tensor], list[Tensor]]

    def solved(self, left: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        """The step that leaves least; float64."""
        right = self._against(left)
        found = conjugate_gradients(self._normal, right, iterations, _SETTLED, precondition=self._preconditioned)
        own, theirs = self._parts(found.solution.double())
        return own, theirs

    def _parts(self, step: Tensor) -> tuple[Tensor, Tensor]:
        places, inputs = self.at_inputs.shape[1:]
        own, theirs = torch.split(step, [places * inputs, self.cotangents.numel()])
        return own.reshape(places, inputs), theirs.reshape(self.cotangents.shape)

    def _normal(self, step: Tensor) -> Tensor:
        own, theirs = self._parts(step)
        pairs = zip(self.at_inputs, self.shifted(own), strict=True)
        made = torch.stack([theirs.T @ at + self.cotangents.T @ moved for at, moved in pairs])
        return self._against(made * self.weight)

    def _against(self, values: Tensor) -> Tensor:
        weighed = values * self.weight
        own = torch.stack([at @ one for at, one in zip(self.at_cotangents, weighed, strict=True)]).sum(dim=0)
        theirs = torch.stack([at @ one.T for at, one in zip(self.at_inputs, weighed, strict=True)]).sum(dim=0)
        return torch.cat([own.flatten(), theirs.flatten()])

    def _preconditioned(self, step: Tensor) -> Tensor:
        pairs = zip(self._parts(step), self.inverted, strict=True)
        return torch.cat([torch.cholesky_solve(one.T[..., None], factor)[..., 0].T.flatten() for one, factor in pairs])


def _size(left: Tensor, inputs: Tensor, cotangents: Tensor) -> float:
    """Of noise, in deviations, by what the factors leave of it: they take up as much as they have unknowns."""
    free = inputs.numel() + cotangents.numel()
    return (float(left.square().sum()) / max(left.numel() - free, 1)) ** 0.5


def _by_tap(values: Tensor) -> Tensor:
    return torch.stack(list(by_tap(values).values()))


def _inverted(rows: Float[Tensor, "tap place _"], weight: Tensor, *, outputs: bool) -> Tensor | None:
    """Factors of each channel's normal matrix of the other factor's rows, ``(channel, place, place)``, by the entries
    that are known best; None where one is singular."""
    places = rows.shape[1]
    # (equation, place) and (channel, equation)
    matrix = rows.permute(0, 2, 1).flatten(0, 1)
    weights = (weight.permute(1, 0, 2) if outputs else weight.permute(2, 0, 1)).flatten(1)
    used = min(len(matrix), _USED * places)
    chosen = weights.topk(used, dim=1)
    found = torch.empty(len(weights), places, places)
    # Some channels at a time: as many doubles again would be more than all that is kept.
    for some in torch.split(torch.arange(len(weights)), 8):
        which, scale = chosen.indices[some], chosen.values[some]
        weighed = matrix[which.flatten()].reshape(len(which), used, places) * scale[..., None]
        factor, failed = torch.linalg.cholesky_ex(weighed.mT @ weighed)
        if bool(failed.any()) or not bool(torch.isfinite(factor).all()):
            return None
        found[some] = factor.float()
    return found

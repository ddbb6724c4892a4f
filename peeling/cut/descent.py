"""Images whose features are those at a cut, by L-BFGS from a start that is near enough.

At an open unit the value in front of the rectifier is known, at a shut one only that it is not above zero: what differs
is summed in squares, each image's relative to its own features. Gradients of parameters are left out: added early, they
trap the descent, and where the features are known well they add nothing.

How far the features determine the images is measured: the descent is made again, from where it ended, with the features
off by as much as their stated errors. What the images move by is their own error. That is no proof that there are no
others with the same features far away; the features' misfit is met to rounding in that case too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..layers import sizes
from .places import Cut

# Iterations between two looks at how far the loss has fallen, and the history of the curvature.
_ITERATIONS, _HISTORY = 20, 20
# A round that leaves more than this share of the loss ends the descent.
_FALLS = 0.97
# The loss is a square of relative errors; the line search works on numbers around 1.
_UNIT = 1e4
# Rounds of the second descent, which starts where the first one ended.
_AGAIN = 4


@dataclass(frozen=True)
class Recovered:
    """Images found from a cut."""

    images: Float[Tensor, "image channel height width"]
    """As the model is given them, within the range of pixels."""
    misfit: Float[Tensor, " image"]
    """What is left of each image's features, relative."""
    error: Float[Tensor, " image"]
    """Estimated root mean square error, in the same units as the images."""
    evaluations: int
    """Of the features and their derivative."""


def images_from_cut(
    cut: Cut,
    start: Float[Tensor, "image channel height width"],
    lowest: Tensor,
    highest: Tensor,
    most_evaluations: int = 500,
    on_round: Callable[[int, Tensor], None] | None = None,
    device: torch.device | None = None,
) -> Recovered:
    """Descend from a start.

    Args:
        cut: With the features.
        start: Images as the model is given them.
        lowest: What black is to the model, ``(channel, 1, 1)``.
        highest: What white is.
        most_evaluations: After which the descent ends.
        on_round: Called with the number of evaluations so far and the images.
        device: On which the model is run.
    """
    device = device or torch.device("cpu")
    low, high = lowest.to(device, torch.float32), highest.to(device, torch.float32)
    descent = _Descent(cut, device)
    images = descent.run(start.clamp(lowest, highest), descent.targets, most_evaluations, on_round, None)
    images = images.clamp(low, high)
    misfit = descent.misfits(images).detach().sqrt().cpu().double()
    moved = descent.run(images, descent.moved(misfit), most_evaluations, None, _AGAIN)
    apart = sizes(moved.clamp(low, high) - images).cpu().double()
    return Recovered(images.cpu().double(), misfit, apart, descent.evaluations)


class _Descent:
    """The features as a loss."""

    def __init__(self, cut: Cut, device: torch.device) -> None:
        self.cut, self.device, self.evaluations = cut, device, 0
        self.forward = cut.forward(torch.float32, device)
        self.is_open = [place.is_open.to(device) for place in cut.places]
        self.targets = [place.values.to(device, torch.float32) for place in cut.places]
        lengths = [target.flatten(1).norm(dim=1).clamp_min(1e-30) for target in self.targets]
        self.scales = [(1 / length)[:, None, None, None] for length in lengths]

    def moved(self, misfit: Tensor) -> list[Tensor]:
        """The features off by as much as their errors, and as what the descent left of them."""
        random = torch.Generator().manual_seed(0)
        found = []
        for place, target in zip(self.cut.places, self.targets, strict=True):
            size = sizes(place.values)
            spread = place.deviation.maximum((misfit * size)[:, None, None, None])
            off = torch.randn(place.values.shape, generator=random, dtype=torch.float64) * spread
            found.append(target + off.to(target))
        return found

    def misfits(self, images: Tensor, targets: list[Tensor] | None = None) -> Tensor:
        """The sum of squares of each image."""
        parts = []
        for value, target, mask, scale in zip(
            self.forward(images), targets or self.targets, self.is_open, self.scales, strict=True
        ):
            off = torch.where(mask, value - target, value.clamp_min(0)) * scale
            parts.append(off.flatten(1).square().sum(dim=1))
        return torch.stack(parts).sum(dim=0)

    def run(
        self,
        start: Tensor,
        targets: list[Tensor],
        most: int,
        on_round: Callable[[int, Tensor], None] | None,
        rounds: int | None,
    ) -> Tensor:
        images = start.to(self.device, torch.float32).clone().requires_grad_()
        optimiser = torch.optim.LBFGS(
            [images],
            max_iter=_ITERATIONS,
            history_size=_HISTORY,
            line_search_fn="strong_wolfe",
            tolerance_grad=0,
            tolerance_change=0,
        )

        def loss() -> Tensor:
            optimiser.zero_grad()
            found = _UNIT * self.misfits(images, targets).sum()
            found.backward()  # type: ignore[no-untyped-call]
            self.evaluations += 1
            return found

        last, made, first = float("inf"), 0, self.evaluations
        while self.evaluations - first < most and (rounds is None or made < rounds):
            with torch.enable_grad():
                optimiser.step(loss)  # type: ignore[no-untyped-call]
            with torch.no_grad():
                now = float(self.misfits(images, targets).sum())
            made += 1
            if on_round is not None:
                on_round(self.evaluations, images.detach())
            if not now <= _FALLS * last:
                break
            last = now
        return images.detach()

"""Images whose features are those at a cut, by L-BFGS from a start that is near enough.

At a unit that was surely open the value in front of the rectifier is known, at the others what of it is above zero:
what differs is summed in squares, each image's relative to its own features. Where one place is known better than
another, the descent goes on with each place by how well it is known: a block that is barely determined says little
beside one that is exact, but helps to get near. Gradients of parameters are left out: added early, they trap the
descent, and where the features are known well they add nothing. Each image has a descent of its own (`lbfgs`): they
share the batches in which the model is run, and nothing else. Where batch norm runs on the batch's own statistics, all
images descend as one.

How far the features determine the images is measured: the descent is made again, from near where it ended, with the
features off by as much as their stated errors. What the images move by, and what is left of the way back, is their own
error. That is no proof that there are no others with the same features far away; the features' misfit is met to
rounding in that case too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..layers import sizes
from .lbfgs import Descended, descend
from .places import Cut, features_off

# The loss is a square of relative errors; the line search works on numbers around 1.
_UNIT = 1e4
# What single precision leaves of features, relative.
_ROUNDING = 1e-6
# Places that are known less well than the best by less than this are alike.
_ALIKE = 0.3
# Evaluations of an image in the second descent; and its share of all, at most.
_AGAIN, _SHARE = 100, 0.25
# How far from where the first one ended it begins, in errors of the features.
_ASIDE = 10.0


@dataclass(frozen=True)
class Recovered:
    """Images found from a cut."""

    images: Float[Tensor, "image channel height width"]
    """As the model is given them, within the range of pixels."""
    misfit: Float[Tensor, " image"]
    """What is left of each image's features, relative; of places that are known less well than the best, by so much
    less."""
    error: Float[Tensor, " image"]
    """Estimated root mean square error, in the same units as the images."""
    evaluations: Int[Tensor, " image"]
    """Of each image's features and their derivative."""


def images_from_cut(
    cut: Cut,
    start: Float[Tensor, "image channel height width"],
    lowest: Tensor,
    highest: Tensor,
    most_evaluations: int = 500,
    on_evaluation: Callable[[int, Tensor], None] | None = None,
    device: torch.device | None = None,
) -> Recovered:
    """Descend from a start.

    Args:
        cut: With the features.
        start: Images as the model is given them.
        lowest: What black is to the model, ``(channel, 1, 1)``.
        highest: What white is.
        most_evaluations: For each image; what one does not need another one may have.
        on_evaluation: Called with how often images were evaluated so far, all together, and the best ones.
        device: On which the model is run.
    """
    device = device or torch.device("cpu")
    low, high = lowest.to(device, torch.float32), highest.to(device, torch.float32)
    features = (_Coupled if cut.is_coupled else _Features)(cut, device)
    again = min(_AGAIN, int(_SHARE * most_evaluations))
    begun = start.to(device, torch.float32).clamp(low, high)
    most = (most_evaluations - again) * len(start)
    found = features.descended(begun, features.targets, most, on_evaluation)
    evaluations = found.evaluations
    if features.weigh():
        most -= int(evaluations.sum())
        found = features.descended(found.images, features.targets, most, on_evaluation)
        evaluations = evaluations + found.evaluations
    images, everyone = features.within(found.images, low, high), torch.arange(len(start))
    with torch.no_grad():
        misfit = features.misfits(images, everyone, features.targets).sqrt().cpu().double()
    aside = features.within(features.aside(images, misfit), low, high)
    moved = features.descended(aside, features.moved(misfit), again * len(start))
    apart = features.apart(features.within(moved.images, low, high), images).cpu().double()
    return Recovered(images.cpu().double(), misfit, apart, evaluations + moved.evaluations)


class _Features:
    """The features as a loss."""

    def __init__(self, cut: Cut, device: torch.device) -> None:
        self.cut = cut
        self.forward = cut.forward(torch.float32, device)
        self.is_open = [place.is_open.to(device) for place in cut.places]
        self.is_held = [place.is_held.to(device) for place in cut.places]
        self.targets = [place.values.to(device, torch.float32) for place in cut.places]
        lengths = [target.flatten(1).norm(dim=1).clamp_min(1e-30) for target in self.targets]
        self.scales = [(1 / length)[:, None, None, None] for length in lengths]
        self.errors = torch.stack([place.error for place in cut.places]).clamp_min(_ROUNDING)
        self.weights = torch.ones_like(self.errors)

    def noise(self) -> Tensor:
        """The loss that the features' errors alone make."""
        return _UNIT * (self.errors * self.weights).square().sum(dim=0)

    def weigh(self) -> bool:
        """From now on each place counts by how well it is known; whether that changes anything."""
        self.weights = self.errors.amin(dim=0) / self.errors
        for index, weight in enumerate(self.weights):
            self.scales[index] = self.scales[index] * weight[:, None, None, None].to(self.scales[index])
        return bool((self.weights < _ALIKE).any())

    def moved(self, misfit: Tensor) -> list[Tensor]:
        """The features off by as much as their errors, and as what the descent left of them."""
        random = torch.Generator().manual_seed(0)
        found = []
        for place, target, weight in zip(self.cut.places, self.targets, self.weights, strict=True):
            left = misfit / weight
            size = sizes(place.values)
            spread = place.deviation.maximum((left * size)[:, None, None, None])
            off = torch.randn(place.values.shape, generator=random, dtype=torch.float64) * spread
            # A unit that is shut stays so.
            found.append(target + (off * (place.values > 0)).to(target))
        return found

    def aside(self, images: Tensor, misfit: Tensor) -> Tensor:
        """Where the second descent begins: what it leaves of the way back, the first one has left open too."""
        random = torch.Generator().manual_seed(1)
        by = _ASIDE * self.errors.amin(dim=0).maximum(misfit) * sizes(images).cpu()
        return images + (torch.randn(images.shape, generator=random) * by[:, None, None, None]).to(images)

    def misfits(self, images: Tensor, which: Tensor, targets: list[Tensor]) -> Tensor:
        """The sum of squares of each candidate; ``which`` says for which images they are ones."""
        parts = []
        told = zip(self.forward(images), targets, self.is_open, self.is_held, self.scales, strict=True)
        for value, target, is_open, is_held, scale in told:
            off = features_off(value, target[which], is_open[which], is_held[which]) * scale[which]
            parts.append(off.flatten(1).square().sum(dim=1))
        return torch.stack(parts).sum(dim=0)

    def descended(
        self,
        start: Tensor,
        targets: list[Tensor],
        most: int,
        on_evaluation: Callable[[int, Tensor], None] | None = None,
    ) -> Descended:
        """From a start, with so many evaluations of all images together."""
        return descend(self.loss(targets), start, most, self.noise(), on_evaluation)

    def within(self, images: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
        """The images in the range of pixels."""
        return images.clamp(lowest, highest)

    def apart(self, moved: Tensor, images: Tensor) -> Float[Tensor, " image"]:
        """How far each image moved."""
        return sizes(moved - images)

    def loss(self, targets: list[Tensor]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """See `descend`."""

        def evaluate(which: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
            candidates = candidates.detach().requires_grad_()
            with torch.enable_grad():
                found = _UNIT * self.misfits(candidates, which, targets)
                (derivative,) = torch.autograd.grad(found.sum(), candidates)
            return found.detach(), derivative

        return evaluate


class _Coupled(_Features):
    """The same where each image's features depend on all images: the batch descends as one image.

    Batch norm hides the contrast of the whole batch, so that images need not be in the range of pixels.
    """

    def descended(
        self,
        start: Tensor,
        targets: list[Tensor],
        most: int,
        on_evaluation: Callable[[int, Tensor], None] | None = None,
    ) -> Descended:
        """See `_Features.descended`."""
        count, noise = len(start), self.noise().mean().reshape(1)
        everyone, single = torch.arange(count), self.loss(targets)

        def evaluate(_: Tensor, batches: Tensor) -> tuple[Tensor, Tensor]:
            value, derivative = single(everyone, batches[0])
            return value.mean().reshape(1), derivative[None] / count

        def told(evaluations: int, batches: Tensor) -> None:
            if on_evaluation is not None:
                on_evaluation(evaluations * count, batches[0])

        found = descend(evaluate, start[None], most // count, noise, told)
        return Descended(found.images[0], found.loss.expand(count), found.evaluations.expand(count))

    def within(self, images: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
        """See `_Features.within`."""
        return images

    def apart(self, moved: Tensor, images: Tensor) -> Float[Tensor, " image"]:
        """See `_Features.apart`; another contrast of the whole batch is no other image."""
        factor = (moved * images).sum() / moved.square().sum().clamp_min(1e-300)
        return sizes(factor * moved - images)

"""Images that have the features at a cut and are smooth otherwise, where features are fewer than pixels.

Many images have the same features then. A descent on the features alone fills what they leave open with noise that the
network does not see, and ends farther from the photos than the decoded start that it began at; the smoothest of these
images, edges spared, is nearer to a photo than the start is. So total variation stands beside the features, large at
first, and falls to what hardly moves the features. An image's features are those of `descent`: equal at units that were
surely open, of the others what is above zero.

Where batch norm on the batch's own statistics couples the images they go together, as the batch that they are; and
where it hides the contrast of all of them it is kept as wide as the range of pixels (see `contrast`): smoothness would
take it away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ...priors.total_variation import colour_total_variation
from .contrast import hides_contrast, widest_contrast
from .places import Cut, features_off
from .projections import Projections


@dataclass(frozen=True)
class Descents:
    """How the images descend: some times, each time from where they ended, smooth at first and sharper in the end.

    What features leave open comes out otherwise each time, and what they tell alike; so the mean of the ends, without
    the first of several, which is still on its way, is nearer to a photo than any of them.
    """

    steps: int
    """Of each."""
    most: int
    """So many at most."""
    rate: float
    """Of Adam, in pixels in [0, 1], at first; it falls to `_LAST_RATE` in half a cosine."""
    weights: tuple[float, ...]
    """Of total variation, of pixels in [0, 1], against the squared relative misfit; each for a part of the steps."""


# Where batch norm couples the images, and for large images: on a trained network of 224 px the larger rate lost 3 dB.
_SLOW = Descents(1600, 1, 0.02, (0.7, 0.35, 0.17, 0.09))
_LARGEST = 128
"""Side of images that descend at the larger rate, in pixels."""
_OPEN = Descents(800, 5, 0.07, (0.7, 0.3, 0.1, 0.04))
# Behind max-pooling it is less far to the features.
_POOLED_STEPS, _POOLED_MOST = 400, 3
FEWEST_STEPS = 100
"""With fewer the features are not met."""
# With no more descents than these, the first one counts too.
_FEW = 2
# Pixels beyond their range, of a contrast that nothing but that range tells.
_OUTSIDE = 0.01
# With fewer steps than usual the first rate is less in proportion, since they are too few to settle again, to this one.
_LEAST_RATE, _LAST_RATE = 0.02, 0.001


def descents(cut: Cut) -> Descents:
    """Those from this cut."""
    if cut.is_coupled:
        return _SLOW
    found = _OPEN if max(cut.graph.image_shape[1:]) <= _LARGEST else _SLOW
    if not cut.is_pooled:
        return found
    return replace(found, steps=_POOLED_STEPS, most=min(found.most, _POOLED_MOST))


def is_open_question(cut: Cut) -> bool:
    """Whether of every image fewer features are known to equal something than it has pixel values, so that no descent
    on features leads to one image alone."""
    units = sum(place.is_open.flatten(1).sum(dim=1) for place in cut.places)
    assert isinstance(units, Tensor)
    return bool((units < math.prod(cut.graph.image_shape)).all())


def smooth_images(
    cut: Cut,
    start: Float[Tensor, "image channel height width"],
    lowest: Tensor,
    highest: Tensor,
    planned: Descents,
    on_step: Callable[[int], None] | None = None,
    device: torch.device | None = None,
    projections: Sequence[Projections] = (),
) -> tuple[Float[Tensor, "image channel height width"], Float[Tensor, " image"], bool]:
    """The images, as the model is given them; what each leaves of its features, relative; and whether these hide the
    contrast, which is then the widest that pixels allow.

    Args:
        cut: With the features.
        start: Images as the model is given them; all of the batch where batch norm couples them.
        lowest: What black is to the model, ``(channel, 1, 1)``.
        highest: What white is.
        planned: How often they descend, and how far each time.
        on_step: Called with how many steps were made.
        device: On which the model is run.
        projections: Of values in front of the cut, to be met too; then the images must be all that they are sums over.
    """
    device = device or torch.device("cpu")
    low, high = lowest.to(device, torch.float32), highest.to(device, torch.float32)
    misfits = _misfits(cut, device, projections)
    pixels = ((start.to(device, torch.float32) - low) / (high - low)).clamp(0, 1).requires_grad_()
    is_hidden = hides_contrast(cut, start)
    usual = descents(cut)
    rate = max(_LEAST_RATE, usual.rate * min(planned.steps / usual.steps, 1.0))
    ends = list[Tensor]()
    for descent in range(planned.most):
        optimiser = torch.optim.Adam([pixels], rate, betas=(0.9, 0.99))
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(planned.steps, 1), _LAST_RATE)
        for step in range(planned.steps):
            weight = planned.weights[step * len(planned.weights) // planned.steps]
            # A mean over the batch: as much for each image, however many there are.
            variation = len(pixels) * colour_total_variation(pixels)
            features, projected = misfits(low + (high - low) * pixels)
            # As much for each image too: what it would have, were all of them off alike.
            loss = features.sum() + len(pixels) * projected + weight * variation
            (pixels.grad,) = torch.autograd.grad(loss, pixels)
            optimiser.step()
            falling.step()
            with torch.no_grad():
                if is_hidden:
                    given = low + (high - low) * pixels
                    pixels.copy_((widest_contrast(given, low, high, _OUTSIDE) * given - low) / (high - low))
                pixels.clamp_(0, 1)
            if on_step is not None:
                on_step(descent * planned.steps + step + 1)
        ends.append(pixels.detach().clone())
    with torch.no_grad():
        settled = ends[1:] if len(ends) > _FEW else ends
        images = low + (high - low) * torch.stack(settled).mean(dim=0)
        return images.cpu().double(), misfits(images)[0].sqrt().cpu().double(), is_hidden


def _misfits(
    cut: Cut, device: torch.device, projections: Sequence[Projections]
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Squares of what images leave of their features, relative to the length of these, and of all projections."""
    forward = cut.forward(torch.float32, device, [one.value for one in projections])
    targets = [place.values.to(device, torch.float32) for place in cut.places]
    units = [(place.is_open.to(device), place.is_held.to(device)) for place in cut.places]
    lengths = [target.flatten(1).square().sum(dim=1).clamp_min(1e-30) for target in targets]
    sums = [one.to(torch.float32, device) for one in projections]

    def misfits(images: Tensor) -> tuple[Tensor, Tensor]:
        values = forward(images)
        told = zip(values, targets, units, lengths, strict=False)
        parts = [
            features_off(value, target, is_open, is_held).flatten(1).square().sum(dim=1) / length
            for value, target, (is_open, is_held), length in told
        ]
        off = [one.off(value) for one, value in zip(sums, values[len(targets) :], strict=True)]
        return torch.stack(parts).sum(dim=0), torch.stack([images.new_zeros(()), *off]).sum()

    return misfits

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
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ...priors.total_variation import colour_total_variation
from .contrast import hides_contrast, widest_contrast
from .places import Cut, features_off

# Weights of total variation, of pixels in [0, 1], against the squared relative misfit; each for a part of the steps.
_WEIGHTS = (0.7, 0.35, 0.17, 0.09)
STEPS = 1600
FEWEST_STEPS = 100
"""With fewer the features are not met."""
# Pixels beyond their range, of a contrast that nothing but that range tells.
_OUTSIDE = 0.01
# Of Adam, in pixels in [0, 1]; it falls to a twentieth in half a cosine.
_RATE, _LAST_RATE = 0.02, 0.001


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
    steps: int = STEPS,
    on_step: Callable[[int], None] | None = None,
    device: torch.device | None = None,
) -> tuple[Float[Tensor, "image channel height width"], Float[Tensor, " image"], bool]:
    """The images, as the model is given them; what each leaves of its features, relative; and whether these hide the
    contrast, which is then the widest that pixels allow.

    Args:
        cut: With the features.
        start: Images as the model is given them; all of the batch where batch norm couples them.
        lowest: What black is to the model, ``(channel, 1, 1)``.
        highest: What white is.
        steps: Of the descent.
        on_step: Called with how many were made.
        device: On which the model is run.
    """
    device = device or torch.device("cpu")
    low, high = lowest.to(device, torch.float32), highest.to(device, torch.float32)
    misfits = _misfits(cut, device)
    pixels = ((start.to(device, torch.float32) - low) / (high - low)).clamp(0, 1).requires_grad_()
    is_hidden = hides_contrast(cut, start)
    optimiser = torch.optim.Adam([pixels], _RATE, betas=(0.9, 0.99))
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1), _LAST_RATE)
    for step in range(steps):
        weight = _WEIGHTS[step * len(_WEIGHTS) // steps]
        # A mean over the batch: as much for each image, however many there are.
        variation = len(pixels) * colour_total_variation(pixels)
        loss = misfits(low + (high - low) * pixels).sum() + weight * variation
        (pixels.grad,) = torch.autograd.grad(loss, pixels)
        optimiser.step()
        falling.step()
        with torch.no_grad():
            if is_hidden:
                given = low + (high - low) * pixels
                pixels.copy_((widest_contrast(given, low, high, _OUTSIDE) * given - low) / (high - low))
            pixels.clamp_(0, 1)
        if on_step is not None:
            on_step(step + 1)
    with torch.no_grad():
        images = low + (high - low) * pixels
        return images.cpu().double(), misfits(images).sqrt().cpu().double(), is_hidden


def _misfits(cut: Cut, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Squares of what images leave of their features, relative to the length of these."""
    forward = cut.forward(torch.float32, device)
    targets = [place.values.to(device, torch.float32) for place in cut.places]
    units = [(place.is_open.to(device), place.is_held.to(device)) for place in cut.places]
    lengths = [target.flatten(1).square().sum(dim=1).clamp_min(1e-30) for target in targets]

    def misfits(images: Tensor) -> Tensor:
        told = zip(forward(images), targets, units, lengths, strict=True)
        parts = [
            features_off(value, target, is_open, is_held).flatten(1).square().sum(dim=1) / length
            for value, target, (is_open, is_held), length in told
        ]
        return torch.stack(parts).sum(dim=0)

    return misfits

"""Each image guessed more than once where its features leave pixels open, and the mean of the guesses.

A descent to a smooth image with the features ends in the nearest of many minima: what the features fix only through
rectifiers, and what they leave open, comes out otherwise from another start. Such errors are partly independent, so
that the mean of two guesses is nearer to the photo than each, although it meets the features less well. One descent
begins at the decoder's image, one at the mean colour of that, which has nothing of the public photos' details.

They descend in coordinates in which photos have one size (`spectrum`), by L-BFGS (`lbfgs`): pixel by pixel, with Adam,
features are met far more slowly. Total variation is rounded where it is small, since L-BFGS reads the curvature.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .lbfgs import descend
from .misfits import misfits_of
from .places import Cut
from .spectrum import Spectrum

GUESSES = 2
"""Of each image."""
# Against the squared relative misfit: total variation of pixels in [0, 1], and mean squares of what is beyond these.
_SMOOTHNESS, _OUTSIDE = 0.05, 15.0
# A difference of neighbouring pixels below this counts by its square.
_ROUNDED = 0.01
# The line search works on numbers around 1.
_UNIT = 1e4
# Of the loss: none is reached below which there is nothing to be gained.
_NOISE = 1e-9


def guessed_images(
    cut: Cut,
    start: Float[Tensor, "image channel height width"],
    lowest: Tensor,
    highest: Tensor,
    evaluations: int,
    on_evaluation: Callable[[int], None] | None = None,
    device: torch.device | None = None,
) -> tuple[Float[Tensor, "image channel height width"], Float[Tensor, " image"]]:
    """The images, as the model is given them, and what each leaves of its features, relative.

    Args:
        cut: With the features; its images do not depend on each other.
        start: Images of the decoder.
        lowest: What black is to the model, ``(channel, 1, 1)``.
        highest: What white is.
        evaluations: Of one image's features and their derivative, for all its guesses together.
        on_evaluation: Called with each number of them that was reached, in turn.
        device: On which the model is run.
    """
    device = device or torch.device("cpu")
    low, high = lowest.to(device, torch.float32), highest.to(device, torch.float32)
    count, misfits = len(start), misfits_of(cut, device)
    spectrum = Spectrum.of(start.shape[1], start.shape[2], start.shape[3], device)
    decoded = ((start.to(device, torch.float32) - low) / (high - low)).clamp(0, 1)
    flat = decoded.mean(dim=(2, 3), keepdim=True).expand_as(decoded)

    def evaluate(which: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        coefficients = coefficients.detach().requires_grad_()
        with torch.enable_grad():
            pixels = spectrum.images(coefficients)
            outside = (pixels - pixels.clamp(0, 1)).square().mean(dim=(1, 2, 3))
            loss = misfits(low + (high - low) * pixels, which % count)
            loss = _UNIT * (loss + _SMOOTHNESS * _variation(pixels) + _OUTSIDE * outside)
            (derivative,) = torch.autograd.grad(loss.sum(), coefficients)
        return loss.detach(), derivative

    made = 0

    def told(evaluated: int, _: Tensor) -> None:
        nonlocal made
        while made * count < evaluated:
            made += 1
            if on_evaluation is not None:
                on_evaluation(made)

    begun = spectrum.coefficients(torch.cat([decoded, flat]))
    found = descend(evaluate, begun, evaluations * count, torch.full((len(begun),), _NOISE), told)
    with torch.no_grad():
        guesses = spectrum.images(found.images).clamp(0, 1)
        pixels = guesses.reshape(GUESSES, count, *guesses.shape[1:]).mean(dim=0)
        images = low + (high - low) * pixels
        return images.cpu().double(), misfits(images).sqrt().cpu().double()


def _variation(pixels: Float[Tensor, "image channel height width"]) -> Float[Tensor, " image"]:
    """Of each image, as in `priors.total_variation.colour_total_variation`, with small differences by their squares."""
    down = F.pad(pixels[..., 1:, :] - pixels[..., :-1, :], (0, 0, 0, 1))
    along = F.pad(pixels[..., :, 1:] - pixels[..., :, :-1], (0, 1))
    squares = (down.square() + along.square()).mean(dim=1)
    return (squares + _ROUNDED**2).sqrt().mean(dim=(1, 2)) - _ROUNDED

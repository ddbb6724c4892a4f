"""Pixels that were solved for exactly, held against the range that pixels have."""

from __future__ import annotations

import math

from ..capture import CapturedUpdate
from ..peeling import Anchor
from .finding import Finding

# So far outside of [0, 1], beyond three estimated errors, pixels may lie without a word: resizing can overshoot.
_OUTSIDE = 0.05


def check_pixels(update: CapturedUpdate, anchor: Anchor) -> Finding:
    """Where peeling came to the images themselves, they show whether the normalisation can be right.

    Args:
        update: What the client sent.
        anchor: What peeling came to.
    """
    at_the_images = set(anchor.explained) >= set(update.gradients) and not anchor.one_sided
    if not at_the_images or anchor.activations[0].numel() != math.prod(update.image_shape):
        return Finding()
    pixels = update.normalisation.invert(anchor.activations.reshape(-1, *update.image_shape))
    low, high = float(pixels.min()), float(pixels.max())
    slack = _OUTSIDE + 3 * anchor.error * float(pixels.abs().max())
    if low >= -slack and high <= 1 + slack:
        return Finding()
    sentence = f"the pixels that were solved for span {low:.2g} to {high:.2g} by it, and pixels lie in 0 to 1"
    return Finding(contradictions={"normalisation": sentence})

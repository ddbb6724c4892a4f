"""What images leave of the features at a cut, as a loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .places import Cut, features_off


def misfits_of(cut: Cut, device: torch.device) -> Callable[..., Tensor]:
    """A function from images to the squares of what they leave of their features, relative to the length of these.

    It may be given, behind the images, which of the cut's images each one is a candidate for; else they are all of
    them, in their order.

    Args:
        cut: With the features.
        device: On which the model is run.
    """
    forward = cut.forward(torch.float32, device)
    targets = [place.values.to(device, torch.float32) for place in cut.places]
    units = [(place.is_open.to(device), place.is_held.to(device)) for place in cut.places]
    lengths = [target.flatten(1).square().sum(dim=1).clamp_min(1e-30) for target in targets]

    def misfits(images: Tensor, which: Tensor | None = None) -> Tensor:
        some: slice | Tensor = slice(None) if which is None else which
        told = zip(forward(images), targets, units, lengths, strict=True)
        parts = [
            features_off(value, target[some], is_open[some], is_held[some]).flatten(1).square().sum(dim=1)
            / length[some]
            for value, target, (is_open, is_held), length in told
        ]
        return torch.stack(parts).sum(dim=0)

    return misfits

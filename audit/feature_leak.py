"""How well the features that the attack recovered tell the private images from all others."""

from __future__ import annotations

from dataclasses import dataclass

_CLEARLY = 0.1
"""Features are recognised where the next image's are ten times as far off or more."""


@dataclass(frozen=True)
class FeatureLeak:
    """How far the recovered features are from those of the private images, in the order of the private batch."""

    place: str
    """Where in the network, and how many, for a reader."""
    way: str
    """How they were found, for a reader."""
    errors: tuple[float, ...]
    """Relative distance of each private image's features to the recovered ones that are taken for them."""
    next_errors: tuple[float, ...]
    """The same for the nearest other image of the batch and the pool; infinite where there is none."""

    @property
    def recognised(self) -> tuple[bool, ...]:
        """Whether each private image can be told by its features from every other image."""
        pairs = zip(self.errors, self.next_errors, strict=True)
        return tuple(error < _CLEARLY and error < _CLEARLY * other for error, other in pairs)

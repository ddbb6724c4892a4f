"""Why a value is not recovered: one type for every rule, and the one place that puts it into words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


class Why(Enum):
    """What stood in the way."""

    FEW_EQUATIONS = "few equations"
    """There are more unknown places than equations for them."""
    LARGE = "large"
    """The equations are more than is solved."""
    INEXACT = "inexact"
    """There is a solution, with a larger error than may be believed."""
    RANK = "rank"
    """The weight gradient is not a sum over so many places."""
    ALIKE = "alike"
    """The images have features with the same zeros."""
    LENGTHS = "lengths"
    """No lengths of the images explain the gradient in front."""
    PATCHES = "patches"
    """What the places see does not tell them apart."""


@dataclass(frozen=True)
class Refused:
    """One thing that a rule tried and does not believe."""

    rule: str
    value: str
    """Name of the value that was not recovered."""
    why: Why
    places: int | None = None
    """Unknowns of each channel: the places of all images."""
    equations: int | None = None
    """That many can be determined at most; with `Why.LARGE` that many are solved at most."""
    error: float | None = None
    """Of the solution that is not believed, or what it leaves of the gradient that should confirm it; relative."""

    @property
    def words(self) -> str:
        """The reason, as the end of a sentence that begins with the value."""
        return _WORDS[self.why].format(
            places="?" if self.places is None else f"{self.places:,}",
            equations="?" if self.equations is None else f"{self.equations:,}",
            error="?" if self.error is None else f"{self.error:.1g}",
        )

    def most_images(self, count: int) -> int | None:
        """Up to how many images as large as these there would be equations enough; 0 where one is too many, None
        where it is not their number that is in the way.

        Args:
            count: Images of the batch.
        """
        if not self._short or self.places is None or self.equations is None:
            return None
        return min(count, self.equations * count // self.places)

    def largest_side(self, count: int, side: int) -> int | None:
        """Up to which side of images of this form there would be equations enough for as many; 0 where there is none,
        None where it is not their size that is in the way.

        Args:
            count: Images of the batch.
            side: Of the images in pixels, the longer one.
        """
        if not self._short or self.places is None or self.equations is None:
            return None
        # In whole places: what pixels are more round up to one place more.
        along = math.isqrt(self.equations // count)
        return min(side, int(along * side / math.sqrt(self.places / count)))

    @property
    def _short(self) -> bool:
        return self.why in (Why.FEW_EQUATIONS, Why.LARGE)


_WORDS = {
    Why.FEW_EQUATIONS: "{places} unknown places of each channel, and equations for at most {equations}",
    Why.LARGE: "{places} unknown places of each channel, and at most {equations} are solved",
    Why.INEXACT: "it is known with an estimated error of {error} only",
    Why.RANK: "the weight gradient is not that of {places} places",
    Why.ALIKE: "the images cannot be told apart by the zeros of their features",
    Why.LENGTHS: "the lengths of the images leave {error} of the gradient in front",
    Why.PATCHES: "{places} places are not told apart by what they see",
}

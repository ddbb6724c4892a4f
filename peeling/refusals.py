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
    COST = "cost"
    """To solve for it is more than is left of what it may cost."""
    JOINT_COST = "joint cost"
    """Gradients alone have too few equations, and to solve for it with known outputs too is more than it may cost."""
    INEXACT = "inexact"
    """There is a solution, with a larger error than may be believed."""
    RANK = "rank"
    """The weight gradient is not a sum over so many places."""
    ALIKE = "alike"
    """The images have features with the same zeros."""
    VISITS = "visits"
    """The weight delta shows another number of visits than the facts make."""
    STEPS = "steps"
    """Which of the client's steps each visit was in does not show."""
    LENGTHS = "lengths"
    """No lengths of the images explain the gradient in front."""
    PATCHES = "patches"
    """What the places see does not tell them apart."""
    OPEN = "open"
    """The equations are enough in number and leave something open all the same."""
    KIND = "kind"
    """The operation is of no kind that can be solved."""
    ALIKE_UNITS = "alike units"
    """No choice of open units is within the bounds that the gradient sets."""
    NEIGHBOURS = "neighbours"
    """The places that were found do not make up whole images."""
    GROUPS = "groups"
    """A convolution has its channels in groups, and no gradient in front links these."""
    FLAT = "flat"
    """The gradient of its weight is zero everywhere."""
    PADDED = "padded"
    """A convolution's grid has other numbers than zeros around it."""
    ROWS_IN_GROUPS = "rows in groups"
    """A 1x1 convolution behind a depthwise one has its channels in groups."""
    NO_ZEROS = "no zeros"
    """What a 1x1 convolution reads comes out of another function than a ReLU or ReLU6."""
    CENTRED = "centred"
    """Batch norm on the batch's own statistics stands in front of a 1x1 convolution."""
    NO_SUMS = "no sums"
    """No gradient in front of a 1x1 convolution sums up the derivative."""
    OVER_STEPS = "over steps"
    """Rows of a sum over local steps have no lengths and no order."""
    FROZEN = "frozen"
    """The update lacks the gradient of its weight."""


@dataclass(frozen=True)
class Refused:
    """One thing that a rule tried and does not believe."""

    rule: str
    value: str
    """Name of the value that was not recovered."""
    why: Why
    places: int | None = None
    """Unknowns: the places of all images, of one channel where all channels have the same equations."""
    equations: int | None = None
    """That many can be determined at most; with `Why.LARGE` that many are solved at most."""
    growing: int = 0
    """Those among the equations that are in proportion to the images; all others are as many for any of them."""
    many: bool = False
    """Whether there are more images than are told apart, however small they are."""
    error: float | None = None
    """Of the solution that is not believed, or what it leaves of the gradient that should confirm it; relative."""

    @property
    def words(self) -> str:
        """The reason, as the end of a sentence that begins with the value."""
        words = _WORDS[self.why]
        if self.why is Why.INEXACT and self.error is not None and not math.isfinite(self.error):
            words = "of what was found no error can be stated"
        if self.why is Why.LENGTHS and self.error is None:
            words = "no lengths above zero explain the gradient in front"
        return words.format(
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
        share = self._share
        return None if share is None else min(count, int(share * count))

    def largest_side(self, along: int, side: int) -> int | None:
        """Up to which side of images of this form there would be equations enough for as many; 0 where there is none,
        None where it is not their size that is in the way.

        Args:
            along: Places along the longer side of the value.
            side: Of the images in pixels, the longer one.
        """
        share = self._share
        if share is not None and self.many:
            return 0
        # In whole places: a pixel more is a place more.
        return None if share is None else min(along, int(share**0.5 * along)) * side // along

    @property
    def _share(self) -> float | None:
        """Of the batch, up to which the equations would be enough."""
        if (
            self.why not in (Why.FEW_EQUATIONS, Why.LARGE, Why.JOINT_COST)
            or self.places is None
            or self.equations is None
        ):
            return None
        return (self.equations - self.growing) / max(self.places - self.growing, 1)


_WORDS = {
    Why.FEW_EQUATIONS: "it has {places} unknowns, and equations for at most {equations}",
    Why.LARGE: "it has {places} unknowns, and at most {equations} are solved",
    Why.COST: "to solve for its {places} unknowns would take more operations than peeling.operations allows",
    Why.JOINT_COST: "its gradients have equations for at most {equations} of its {places} unknowns, and to solve for "
    "them with the known outputs behind it would take more operations than peeling.operations allows",
    Why.INEXACT: "it is known with an estimated error of {error} only",
    Why.RANK: "the weight gradient is not that of {places} places",
    Why.ALIKE: "the images cannot be told apart by the zeros of their features",
    Why.VISITS: "the weight delta shows {equations} visits of images and the facts make {places}: its epochs or number "
    "of images are others, or visits merge, as after small steps, of images learned already or of equal ones",
    Why.STEPS: "which of the client's steps each visit was in does not show (the layers between two convolutions leave "
    "{error} of a visit's features), as where the momentum is another than the facts say or the learning rate changed",
    Why.LENGTHS: "the lengths of the images leave {error} of the gradient in front",
    Why.PATCHES: "its {places} places are not told apart by what they see",
    Why.OPEN: "its equations leave something open",
    Why.KIND: "the layer before it is not of a kind that can be solved",
    Why.ALIKE_UNITS: "no choice of open units agrees with the weight gradient",
    Why.NEIGHBOURS: "the {places} places that were found do not make up whole images",
    Why.GROUPS: "the convolution that reads it has its channels in groups, and no gradient in front of it links them",
    Why.FLAT: "the gradient of the convolution that reads it is zero everywhere, as behind a batch norm begun at zero",
    Why.PADDED: "the grid of the convolution that reads it is padded with its own numbers (reflected, repeated or from "
    "the other side), and taps are told apart by zeros around it",
    Why.ROWS_IN_GROUPS: "the 1x1 convolution that reads it has its channels in groups, and its rows are looked for "
    "only where all channels are read together",
    Why.NO_ZEROS: "it comes out of another function than a ReLU or ReLU6 (such as SiLU, GELU or a "
    "squeeze-and-excitation gate), and it is by exact zeros, and nothing below zero, that the places of a 1x1 "
    "convolution are told apart",
    Why.CENTRED: "it is behind batch norm on the batch's own statistics (train mode): the derivatives behind the 1x1 "
    "convolution sum to zero over the places, so its gradient holds differences from their mean alone",
    Why.NO_SUMS: "neither a bias nor a batch norm in front of it sums up the derivative, by which alone the length of "
    "each place is told",
    Why.OVER_STEPS: "of a weight delta of several local steps the rows of a 1x1 convolution are known up to their "
    "lengths at most and in no order, so that nothing is derived from them",
    Why.FROZEN: "the update lacks the gradient of its weight (a frozen layer)",
}

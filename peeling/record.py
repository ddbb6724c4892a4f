"""What peeling did, for a reader: where it began, what it recovered and how well, where it ended and what would have
let it go on, and how much is known at every value of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from statistics import median

from .refusals import Refused, Why
from .repeats import Repeats

AVERAGED = "average in front"
"""The kind of a mean over windows that the model takes behind a 1x1 convolution, taken in front of it."""
_OF_EFFORT = (Why.COST.value, Why.JOINT_COST.value, Why.LARGE.value)

WHOLE_IMAGES = "the images"
"""What a place is called that is the images themselves."""


class ImagesBy(StrEnum):
    """How the images follow."""

    EQUATIONS = "linear equations"
    """Like every other place: nothing but the gradient has a part in them."""
    DESCENT = "a descent on features"
    """They have the features that are known; what these do not see of an image is what the descent began with."""


class Contrast(StrEnum):
    """Whether the contrast of the batch, one factor by which all its images as the model is given them are multiplied,
    is known."""

    SEEN = "seen"
    """Nothing in front of the features hides it."""
    HIDDEN = "hidden"
    """Batch norm on the batch's own statistics makes the same gradient of every contrast, but for its eps."""
    GRID = "8-bit grid"
    """Hidden from the gradient, and read off pixels that were values of 8 bits."""


@dataclass(frozen=True)
class RecoveredPlace:
    """One value of the network that is known for every image."""

    value: str
    """Its name in the network."""
    place: str
    """What it is, for a reader."""
    reader: str
    """A module whose input it is; empty where none is."""
    shape: tuple[int, ...]
    """Of one image."""
    rule: str
    """That gave it."""
    errors: tuple[float, ...]
    """Estimated relative error of each image, in the order in which the images were recovered."""
    unknowns: int | None = None
    """Of the linear equations that gave it: those of one channel, where all channels have the same equations."""
    equations: int | None = None
    """As many as there are; they must be more than the unknowns."""
    checks: Mapping[str, float] = field(default_factory=dict)
    """Figures that confirm it, such as what it leaves of a gradient; the smaller, the better."""
    seconds: float = 0.0

    @property
    def numbers(self) -> int:
        """Of one image."""
        found = 1
        for side in self.shape:
            found *= side
        return found

    @property
    def error_max(self) -> float:
        """Of the image that is known least."""
        return max(self.errors)

    @property
    def error_median(self) -> float:
        """Of the images."""
        return median(self.errors)


@dataclass(frozen=True)
class End:
    """One place that was tried and not recovered."""

    value: str
    place: str
    rule: str
    why: str
    """In one word, see `Why`."""
    words: str
    """The reason as the end of a sentence that begins with the place."""
    unknowns: int | None
    equations: int | None
    error: float | None
    most_images: int | None
    """Of this size, for which the equations would be enough; 0: not even for one. None: another thing is in the way."""
    largest_side: int | None
    """Of as many images, in pixels; see `most_images`."""


@dataclass(frozen=True)
class LoosePlaces:
    """Features of single places of visits, each up to its length, and not of which visit, image and place they are."""

    value: str
    """Its name in the network."""
    place: str
    """What it is, for a reader."""
    reader: str
    """A module whose input it is; empty where none is."""
    shape: tuple[int, ...]
    """Of one image."""
    places: int
    """Of all visits together."""
    errors: tuple[float, ...]
    """Estimated relative error of each that is known."""

    @property
    def count(self) -> int:
        """How many are known."""
        return len(self.errors)


@dataclass(frozen=True)
class NetworkNode:
    """One operation of the network, and what is known of the value that it makes."""

    name: str
    kind: str
    """In words."""
    inputs: tuple[str, ...]
    """Names of the values that enter."""
    shape: tuple[int, ...]
    """Of the value for one image."""
    activations: float
    """Share of the value's entries, over all images, that are known, in [0, 1]."""
    derivative: float
    """The same of the derivative of the loss by it."""
    error: float | None = None
    """Estimated relative error of the image whose activations are known least; None where none are known."""


@dataclass(frozen=True)
class FoundImages:
    """The images, or what stands for them."""

    by: ImagesBy
    errors: tuple[float, ...]
    """Estimated relative error of each; infinite where the features were not met."""
    confirmed: bool = False
    """Whether they make the gradient that was sent, so that they are no others with the same features."""


@dataclass(frozen=True)
class DecoderPhotos:
    """Public photos that a decoder was fitted on."""

    source: str
    """A folder, or ``photos`` for those that come with scikit-image."""
    names: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """Names of those that are the client's, or that the user left out."""


@dataclass(frozen=True)
class PeelingRecord:
    """All of it."""

    footholds: tuple[str, ...]
    """Where it began, for a reader."""
    places: tuple[RecoveredPlace, ...]
    """In the order in which they were recovered."""
    ends: tuple[End, ...]
    """The most telling first; empty where nothing was refused."""
    nodes: tuple[NetworkNode, ...]
    """In an order in which the network runs them; empty where it could not be read."""
    images: str = "images"
    """Name of the value that the images are."""
    image_count: int = 0
    tolerance: float = 0.0
    """The largest error that was believed."""
    local_steps: int = 0
    """Of a weight delta: how many the client made. Then `image_count` counts visits, one for each image in each of its
    steps; 0 for a gradient."""
    reason: str = ""
    """Why it ended where nothing was refused, in one sentence; empty otherwise."""
    found: FoundImages | None = None
    """None where no images follow."""
    decoded: bool = False
    """Whether seeds begin at images that a decoder, fitted on public photos, made of the features: what these do not
    see of an image is then as the photos have it."""
    photos: DecoderPhotos | None = None
    """That a decoder was fitted on; None where none was."""
    contrast: Contrast = Contrast.SEEN
    """Of the images."""
    by_taps: bool = False
    """Whether taps and rows of all layers were tried; else only the chain of the last layers was."""
    loose: LoosePlaces | None = None
    """What a weight delta of several local steps tells of single places, where it tells no whole visits."""
    repeats: Repeats | None = None
    """Where the gradient shows fewer images than the facts state: how often each of them is in the batch. Then
    `image_count` counts those that are shown."""

    @property
    def nearest(self) -> RecoveredPlace | None:
        """The place nearest to the images; None where there is none."""
        order = {node.name: position for position, node in enumerate(self.nodes)}
        return min(self.places, key=lambda one: order.get(one.value, -1), default=None)

    @property
    def whole(self) -> bool:
        """Whether the images themselves follow from the gradient: by equations, or by a descent that it confirms."""
        if any(one.value == self.images for one in self.places):
            return True
        return self.found is not None and (self.found.by is ImagesBy.EQUATIONS or self.found.confirmed)

    @property
    def exact_places(self) -> int | None:
        """How many places are known; None where there are none and effort, not the equations, set the limit."""
        if self.places:
            return len(self.places)
        left_out = not self.by_taps or any(one.why in _OF_EFFORT for one in self.ends)
        return None if left_out else 0


def end_of(refused: Refused, place: str, shape: tuple[int, ...], image_count: int, side: int) -> End:
    """A refusal with what would have let it go on.

    Args:
        refused: By a rule.
        place: What its value is, for a reader.
        shape: Of the value for one image.
        image_count: Of the batch.
        side: Of the images in pixels, the longer one.
    """
    return End(
        value=refused.value,
        place=place,
        rule=refused.rule,
        why=refused.why.value,
        words=refused.words,
        unknowns=refused.places,
        equations=refused.equations,
        error=refused.error,
        most_images=refused.most_images(image_count),
        largest_side=refused.largest_side(max(shape[1:]), side) if len(shape) == 3 else None,
    )


def joined(record: PeelingRecord | None, chain: PeelingRecord | None, message: str = "") -> PeelingRecord | None:
    """Both: the record on the whole network, and that on the last layers, which may know what the first does not.

    Args:
        record: None where the network as a whole was not looked at.
        chain: Of the last layers.
        message: What is said of the whole network; with no record of it, why there is none.
    """
    if chain is None:
        return record
    if record is None:
        return replace(chain, reason=" ".join(filter(None, (chain.reason, message))))
    by_name = {node.name: node for node in record.nodes}
    known = {one.value for one in record.places}
    added: list[RecoveredPlace] = []
    for one in chain.places:
        value = _read_by(by_name, one.reader)
        if value is not None and value not in known:
            added.append(replace(one, value=value))
    errors = {one.value: one.error_max for one in added}
    nodes = tuple(
        replace(node, activations=1.0, derivative=1.0, error=errors[node.name])
        if node.name in errors and node.activations < 1
        else node
        for node in record.nodes
    )
    footholds = (*record.footholds, *(chain.footholds if added else ()))
    # It did not end at a mean whose input the chain knows.
    passed = any(node.kind == AVERAGED and node.inputs[0] in errors for node in record.nodes)
    reason = "" if passed else record.reason
    return replace(record, places=(*record.places, *added), nodes=nodes, footholds=footholds, reason=reason)


def _read_by(by_name: Mapping[str, NetworkNode], module: str) -> str | None:
    """The value that a module of the model reads; None where it is not in the network."""
    reader = by_name.get(module)
    if reader is None or not reader.inputs:
        return None
    entering = by_name.get(reader.inputs[0])
    # The model takes that mean behind the module.
    return entering.inputs[0] if entering is not None and entering.kind == AVERAGED else reader.inputs[0]

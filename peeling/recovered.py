"""What taps make of an update: the images themselves, or how far it came towards them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor

from .cut import Cut, Decoded
from .known import KnownFeatures
from .own_statistics import StatisticsOff
from .record import ImagesBy, PeelingRecord
from .repeats import Repeats
from .rules import Step
from .rules.image_labels import ImageLabels

# By so much more than the statistics of one layer are images off that were found on all of these.
_ROUGH = 3.0


@dataclass(frozen=True)
class Recovery:
    """What came of it. All tensors of one batch are in one order of the images."""

    message: str
    """What was recovered, and where it ended and why."""
    steps: tuple[Step, ...] = ()
    """Each value that a gradient gave, in the order in which it did."""
    images: Float[Tensor, "image channel height width"] | None = None
    """As the model is given them; None where they do not follow."""
    error: Float[Tensor, " image"] | None = None
    """Estimated root mean square error of each image, as a share of its own root mean square. After a descent it holds
    in the directions that the features see; whether they see all is for another look at the gradient to say."""
    labels: Int[Tensor, " image"] | None = None
    """Of the images; None where they do not follow."""
    final: ImageLabels | None = None
    """What the final layer says of each image; None where its gradient or the features in front of it are not known."""
    module: str | None = None
    """Name of a module whose input the images are."""
    cut: Cut | None = None
    """The features that are nearest to the images, where these do not follow by linear equations alone."""
    start: Decoded | None = None
    """Images that the cut's features look like: where a descent on them starts."""
    record: PeelingRecord | None = None
    """All of it for a reader; None where the network could not be read."""
    known: KnownFeatures | None = None
    """The features nearest to the images that are surely known."""
    blocked: bool = False
    """Whether there was no foothold and convolutions that could be one have no gradient of their own, or no zeros
    around their grid."""
    shown: int | None = None
    """Images that the gradient shows where they are more than the facts state; None otherwise."""

    faint: Float[Tensor, "faint channel height width"] | None = None
    """What a decoder makes of the features of images whose part in the gradient is so small that they are none of those
    above; None where there are none, or nothing of them is known."""
    statistics_off: StatisticsOff | None = None
    """Where the batch's own statistics are others than the client's buffers tell; unless these are `kept`, no image
    rests on them."""

    @property
    def is_rough(self) -> bool:
        """Whether the images rest on statistics that are known roughly."""
        if self.statistics_off is None or not self.statistics_off.kept or self.record is None:
            return False
        return self.record.found is not None and self.record.found.by is ImagesBy.DESCENT

    def on_statistics_off(self, off: StatisticsOff) -> Recovery:
        """With what statistics that are off do to the images that rest on them."""
        found = replace(self, statistics_off=off)
        if not found.is_rough:
            return found
        assert found.error is not None
        assert found.record is not None
        assert found.record.found is not None
        error = (found.error.square() + (_ROUGH * off.whole) ** 2).sqrt()
        images = replace(found.record.found, errors=tuple(error.tolist()))
        return replace(found, error=error, record=replace(found.record, found=images))

    @property
    def repeats(self) -> Repeats | None:
        """How often each image is in the batch, where fewer are shown than stated; None otherwise."""
        return None if self.record is None else self.record.repeats

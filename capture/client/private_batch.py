"""The truth: private images with their labels, as a simulated client's settings name them."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from ..batch import require_unit_range
from ..errors import UpdateError
from .config import ClientConfig
from .images import class_labels, load_images
from .label_words import AUTO, UNIQUE, folder_labels, parse_labels


@dataclass(frozen=True)
class PrivateBatch:
    """The truth: what the client trained on. It goes to the audit and nowhere else."""

    images: Float[Tensor, "batch channel height width"]
    """Pixels in [0, 1]."""
    labels: Int[Tensor, " batch"]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        require_unit_range(self.images, "the private pixels")
        counts = (len(self.images), len(self.labels), len(self.names))
        if len(set(counts)) > 1:
            raise UpdateError(
                f"the private batch has {counts[0]} images, {counts[1]} labels and {counts[2]} names; give one label "
                "and one name per image"
            )


def load_batch(config: ClientConfig) -> PrivateBatch:
    """The images and labels that a client's settings name; those of all clients.

    Raises:
        ImageError, ClientError: What cannot be loaded, in one sentence.
    """
    count = config.image_count
    images, names = load_images(config.images, count, config.image_shape)
    found = class_labels(config.images, count) if config.labels == AUTO else None
    if found is not None:
        return PrivateBatch(images, folder_labels(found, config.classes, config.images), names)
    words = UNIQUE if config.labels == AUTO else config.labels
    return PrivateBatch(images, parse_labels(words, count, config.classes), names)

"""Images among which a reconstruction is to be recognised, and from which the control with other images draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..capture import ImageError, PrivateBatch, count_images, load_images
from ..capture.client.images import PHOTOS

LARGEST_POOL = 1024
"""Further images of a folder are left out, and the report says so."""
_MOST_NUMBERS = 2**27
"""Pixels times channels of all images together: half a gigabyte."""
_SAME = 1 / 255


@dataclass(frozen=True)
class Pool:
    """Images that are not of the private batch."""

    images: Float[Tensor, "pool channel height width"]
    """In [0, 1]."""
    names: tuple[str, ...]
    source: str
    """Folder, or ``"photos"``."""
    note: str = ""
    """What was left out and why, in one sentence; empty when nothing was."""

    def __len__(self) -> int:
        return len(self.images)


def load_pool(source: str, private: PrivateBatch) -> Pool:
    """The images of a folder, or the photos that ship with scikit-image, without those of the private batch.

    Args:
        source: a folder, or ``"photos"``.
        private: the private batch; its size and the shape of its images are those of the pool.

    Raises:
        ImageError: the folder cannot be read, one of its files is no image, or it holds fewer images than the batch.
    """
    batch, *shape = private.images.shape
    found = count_images(source)
    if found < batch:
        raise ImageError(
            f"audit.pool={source} holds {found} images and the batch {batch}: give a pool at least as large as the "
            "batch, or audit.pool=none"
        )
    most = min(found, LARGEST_POOL, max(batch, _MOST_NUMBERS // math.prod(shape)))
    images, names = load_images(source, most, shape)
    kept = [index for index, image in enumerate(images) if not _is_among(image, private.images)]
    note = "" if found <= most else f"only the first {most:,} of the pool's {found:,} images were used"
    return Pool(images[kept], tuple(names[index] for index in kept), source, note)


def _is_among(image: Tensor, others: Tensor) -> bool:
    return bool((image - others.to(image)).abs().flatten(1).amax(1).min() < _SAME)


def draw_batch(pool: Pool, private: PrivateBatch) -> PrivateBatch:
    """As many images of the pool as the private batch holds, under its labels: the first ones by name.

    Raises:
        ImageError: the pool holds fewer images beside the private ones.
    """
    count = len(private.images)
    if len(pool) < count:
        raise ImageError(
            f"audit.pool={pool.source} holds {len(pool)} images beside the private ones, and the control other_images "
            f"needs {count}: give a larger pool"
        )
    return PrivateBatch(pool.images[:count], private.labels, pool.names[:count])


def describe(pool: Pool) -> str:
    """Where the pool comes from, how large it is, and what was left out of it."""
    source = "the photos that ship with scikit-image" if pool.source == PHOTOS else pool.source
    return f"{len(pool):,} other images of {source}" + (f" ({pool.note})" if pool.note else "")

"""Which public photos are the client's own: an attack must not decode with what it is to find."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..capture import PrivateBatch
from ..capture.client.images import PHOTOS, centred, shipped_sources
from ..peeling import PeelingConfig
from ..peeling.cut import Photos, decoder_photos
from ..peeling.cut.photos import SHIPPED, public_photos

# Root mean square difference up to which two images are of one photo: copies are compressed or resized otherwise.
_SAME = 8 / 255
# Channels of images that photos are made into.
_CHANNELS = (1, 3)


def without_private(peeling: PeelingConfig, private: PrivateBatch | None, source: str | None) -> PeelingConfig:
    """The settings with every photo left out that is one of the private images, and with a folder by its whole path.

    Crops of a folder's photos are not recognised: only whoever owns the data knows them.

    Args:
        peeling: As the user gave it.
        private: The truth; None where nobody tells it.
        source: Where a simulated client takes its images from; None for another client.

    Raises:
        ImageError: The folder cannot be read, or too few photos are left in it.
    """
    if not (peeling.enabled and peeling.taps):
        return peeling
    of_folder = peeling.photos != PHOTOS
    if of_folder:
        peeling = replace(peeling, photos=str(Path(peeling.photos).expanduser().resolve()))
    if private is None:
        if of_folder:
            decoder_photos(peeling.photos, peeling.photos_without, (3, 1, 1))
        return peeling
    shape = tuple(private.images.shape[1:])
    if shape[0] not in _CHANNELS:
        return peeling
    without = peeling.photos_without
    known = set(shipped_sources(private.names)) if source == PHOTOS else set[str]()
    if not of_folder:
        without += tuple(name for name in SHIPPED if name in known and name not in without)
    if of_folder or source != PHOTOS:
        without += _same(_all(peeling, shape), private.images)
    peeling = replace(peeling, photos_without=tuple(dict.fromkeys(without)))
    if of_folder:
        decoder_photos(peeling.photos, peeling.photos_without, shape)
    return peeling


def _all(peeling: PeelingConfig, shape: tuple[int, ...]) -> Photos:
    """Every photo that may be used, those that are left out by the user apart."""
    if peeling.photos != PHOTOS:
        return decoder_photos(peeling.photos, peeling.photos_without, shape)
    some = public_photos(peeling.photos_without, shape[0])
    rest = public_photos((*peeling.photos_without, *some), shape[0])
    return {**some, **rest}


def _same(photos: Photos, private: Tensor) -> tuple[str, ...]:
    height, width = private.shape[2:]
    return tuple(name for name, photo in photos.items() if _is_among(centred(photo, height, width), private))


def _is_among(image: Tensor, others: Tensor) -> bool:
    return bool((image - others.to(image)).square().flatten(1).mean(dim=1).min() < _SAME**2)

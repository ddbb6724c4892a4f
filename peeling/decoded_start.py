"""Images that a cut's features look like, where a descent or the seeds begin: by a decoder fitted on public photos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .config import PeelingConfig
from .cut import (
    FEWEST_STEPS,
    REFINING,
    Cut,
    Decoded,
    Descents,
    Projected,
    decode,
    decode_with,
    decoder_photos,
    descents,
    fit_decoder,
    has_blocks,
    photo_crops,
    refine,
    smooth_images,
)
from .graph.cost import operations
from .image_search import ImageSearch
from .progress import Tell
from .record import DecoderPhotos
from .wording import listed

_CROPS = 400
# With fewer there is no start.
_FEWEST_CROPS = 100
# Of the operations, what more crops than the fewest may take.
_START = 0.1
# Where what features leave open is guessed, more photos guess better: so many crops, of so many numbers altogether.
_MORE_CROPS, _MOST_NUMBERS = 1500, 2**26
# The square of places that a block of pixels is made from then, where its features are so many at most: their products
# are solved for.
_REACH, _MOST_FEATURES = 3, 3000
# Pixels of the images that descend at once: what a network keeps of them is a hundred times as much. The second of a
# batch that must stay together, since something is known of it as a whole.
_AT_ONCE, _TOGETHER = 200_000, 450_000
# Of the steps that are affordable, what several descents may take together.
_AGAIN = 0.3
# Of photos that were held out, as a share of their variance about their mean: where the linear decoder explains less,
# what the features leave open outweighs them, and its images are nearer to a photo than what the small network or the
# descent makes of them.
_EXPLAINED = 1 / 3
# Told of the descent so often.
_TOLD = 10


def decoded_start(search: ImageSearch, cut: Cut) -> tuple[Decoded | None, DecoderPhotos | None]:
    """Images that a cut's features look like, None where that is more than is affordable; and the configured photos
    that it was learnt from.

    Args:
        search: Effort, and the photos.
        cut: With the features.

    Raises:
        ImageError: The photos cannot be had.
    """
    count = _affordable(cut, search.config, _CROPS)
    if count < _FEWEST_CROPS:
        return None, None
    crops, photos, _ = _crops(search, count)
    if search.config.own_decoder is not None:
        return decode_with(search.config.own_decoder, cut, crops, device=search.device), photos
    return decode(cut, crops, device=search.device), photos


@dataclass(frozen=True)
class SmoothStart:
    """Images to begin at where what features leave open has to be guessed."""

    decoded: Decoded
    photos: DecoderPhotos | None
    """The configured photos that it was learnt from."""
    misfit: Float[Tensor, " image"] | None = None
    """What the images leave of their features, relative; None where there was no descent on these."""
    widened: bool = False
    """Whether their contrast is the widest that pixels allow, as the features hide it."""
    descents: int = 0
    """How many there were, one after another; the images are a mean of their ends."""
    readers: tuple[str, ...] = ()
    """Convolutions in front of the features: what their gradients tell of their inputs the descent had to meet too."""
    explained: float = 1.0
    """Share of the variance of photos that were held out that the linear decoder explains; 1 where another made it."""

    @property
    def is_faint(self) -> bool:
        """Whether that is so little that nothing but the linear decoder comes nearer to photos."""
        return self.explained < _EXPLAINED

    @property
    def said(self) -> str:
        """How it was made, as the end of a sentence; empty where the decoder's images were left as they are."""
        if self.is_faint:
            return (
                ", which tells little of an image: of photos that were held out it explains "
                f"{self.explained:.0%} of what they differ by from their mean, so that colours and coarse forms are "
                "all that is guessed"
            )
        if self.misfit is None:
            return ""
        gradients = ""
        if self.readers:
            its = (
                "gradient of {} tells of its input"
                if len(self.readers) == 1
                else "gradients of {} tell of their inputs"
            )
            gradients = f", to have what the {its.format(listed(self.readers))}"
        open_ = "where that leaves it open" if gradients else "where they leave it open"
        by, what = ("a descent", "it") if self.descents == 1 else (f"{self.descents} descents", "their mean")
        return (
            f", made by {by} to have them{gradients} and to be smooth {open_} ({what} leaves "
            f"{float(self.misfit.max()):.1g} of the features' length at most)"
        )


def smooth_start(search: ImageSearch, cut: Cut, projected: Projected = tuple) -> SmoothStart | None:
    """The same where features are fewer than pixels, or a maximum hides pixels, and what is open has to be guessed:
    from more photos, mended by a small network, and then made to have the features and to be smooth; without both where
    the features tell too little of an image (`SmoothStart.is_faint`). None where no start is affordable.

    The error that is stated is the decoder's, before the descent, which brings the images nearer: an upper one as a
    rule, but not where it widens their contrast (`SmoothStart.widened`) and the photos had little. Behind max-pooling,
    and of a decoder of the user's own, it was measured on other crops of the photos that it was fitted on, else on
    whole photos that were held out.

    Args:
        search: Effort, and the photos.
        cut: With the features, of all images that the derivation is of.
        projected: Finds what is known of values in front of it; asked where there is a descent.

    Raises:
        ImageError: The photos cannot be had.
    """
    channels, height, width = search.update.image_shape
    features = sum(place.values[0].numel() for place in cut.places)
    most = min(_CROPS if cut.is_pooled else _MORE_CROPS, _MOST_NUMBERS // (channels * height * width + features))
    count = _affordable(cut, search.config, max(most, _FEWEST_CROPS))
    if count < _FEWEST_CROPS:
        return None
    crops, photos, pictures = _crops(search, count)
    decoded, explained = _guess(search, cut, crops, pictures)
    found = SmoothStart(decoded, photos, explained=explained)
    planned = _planned(search, cut)
    if found.is_faint or planned.steps < FEWEST_STEPS:
        return found
    fits = cut.is_coupled or len(decoded.images) * height * width <= _TOGETHER
    projections = projected() if fits else ()
    whole = cut.is_coupled or bool(projections)
    together = len(decoded.images) if whole else max(1, _AT_ONCE // (height * width))
    steps = planned.steps * planned.most
    parts = torch.split(torch.arange(len(decoded.images)), together)
    descended = list[tuple[Tensor, Tensor, bool]]()
    for number, some in enumerate(parts):
        told = _steps_told(search.tell, number * steps, len(parts) * steps)
        own = cut.in_order(some)
        descended.append(
            smooth_images(own, decoded.images[some], *search.bounds, planned, told, search.device, projections)
        )
    images, misfit, widened = zip(*descended, strict=True)
    made = replace(decoded, images=torch.cat(images), fitted=True)
    readers = tuple(name for one in projections for name in one.readers)
    return replace(
        found, decoded=made, misfit=torch.cat(misfit), widened=any(widened), readers=readers, descents=planned.most
    )


def _guess(search: ImageSearch, cut: Cut, crops: Tensor, pictures: int) -> tuple[Decoded, float]:
    """By the user's own decoder, or a linear one that a small network mends; and what of photos that were held out the
    linear one explains, 1 where it was not asked."""
    if search.config.own_decoder is not None:
        return decode_with(search.config.own_decoder, cut, crops, device=search.device), 1.0
    around = _REACH**2 * sum(place.values.shape[1] for place in cut.places)
    wide = around <= _MOST_FEATURES and has_blocks(cut, (crops.shape[2], crops.shape[3]))
    # Behind max-pooling crops are held out and not whole photos: of other photos it leaves rather more.
    held_out = 1 if cut.is_pooled else pictures
    decoder, error = fit_decoder(cut, crops, device=search.device, reach=_REACH if wide else 1, pictures=held_out)
    explained = 1.0 if cut.is_pooled else decoder.explained
    if cut.is_pooled or explained < _EXPLAINED or search.config.operations < REFINING:
        return Decoded(decoder.images([place.values for place in cut.places]), error), explained
    search.tell("a small network that mends what the decoder makes")
    return Decoded(refine(cut, decoder, crops, search.device), error), explained


def _planned(search: ImageSearch, cut: Cut) -> Descents:
    """As many descents, and as long, as are affordable; no steps where none is."""
    usual = descents(cut)
    # A descent takes a pass forwards and a derivative, which costs twice as much.
    affordable = search.config.operations / (3 * search.update.image_count * _each(cut))
    most = min(usual.most, max(1, int(_AGAIN * affordable / usual.steps)))
    return replace(usual, steps=min(usual.steps, int(affordable)), most=most)


def _each(cut: Cut) -> float:
    """Operations of one image up to the cut."""
    return operations(cut.graph, [place.before for place in cut.places])


def _affordable(cut: Cut, config: PeelingConfig, most: int) -> int:
    """How many crops of public photos may be run through the model."""
    each = _each(cut)
    return min(most, max(_FEWEST_CROPS, int(_START * config.operations / each)), int(config.operations / each))


def _crops(search: ImageSearch, count: int) -> tuple[Tensor, DecoderPhotos | None, int]:
    """Crops as the model is given them, the configured photos where they are of these, and of how many photos."""
    config, shape, pictures, photos = search.config, search.update.image_shape, search.pictures, None
    if pictures is None:
        named = decoder_photos(config.photos, config.photos_without, shape)
        photos = DecoderPhotos(config.photos, tuple(named), config.photos_without)
        pictures = list(named.values())
    _, height, width = shape
    crops = photo_crops(pictures, (height, width), count)
    return search.update.normalisation.apply(crops), photos, len(pictures)


def _steps_told(tell: Tell, before: int, whole: int) -> Callable[[int], None]:
    """Tells of the steps of one part of the images, with those of the parts before it, of all that are made."""

    def on_step(made: int) -> None:
        if (before + made) % max(1, whole // _TOLD) == 0:
            tell(f"images that have the features and are smooth, step {before + made} of {whole}")

    return on_step

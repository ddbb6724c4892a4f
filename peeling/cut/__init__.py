"""From features that are known inside a network to the images: a decoded start, and a descent on the features.

The features of several values, each known at its open units, are a cut through the network: nothing behind it matters
for the images any more. From noise every descent from a deep cut gets stuck. A linear decoder, fitted on public photos
that are run through the server's own model, starts near enough for the descent to meet the features to rounding.
"""

from .contrast import Contrast, contrast_by_grid, hides_contrast, widest_contrast, widest_error
from .decoder import Decoded, LinearDecoder, decode, fit_decoder, has_blocks
from .descent import Recovered, images_from_cut
from .grid import GridEvidence, grid_evidence
from .own_decoder import DecoderFactory, decode_with
from .photos import Photos, decoder_photos, photo_crops, public_photos
from .places import Cut, NoCut, Place, features_off, find_cut
from .projections import Projected, Projections, find_projections
from .refining import REFINING, refine
from .smooth import FEWEST_STEPS, Descents, descents, is_open_question, smooth_images
from .winners import Stem, find_stem, images_by_winners, winners_operations

__all__ = [
    "FEWEST_STEPS",
    "REFINING",
    "Contrast",
    "Cut",
    "Decoded",
    "DecoderFactory",
    "Descents",
    "GridEvidence",
    "LinearDecoder",
    "NoCut",
    "Photos",
    "Place",
    "Projected",
    "Projections",
    "Recovered",
    "Stem",
    "contrast_by_grid",
    "decode",
    "decode_with",
    "decoder_photos",
    "descents",
    "features_off",
    "find_cut",
    "find_projections",
    "find_stem",
    "fit_decoder",
    "grid_evidence",
    "has_blocks",
    "hides_contrast",
    "images_by_winners",
    "images_from_cut",
    "is_open_question",
    "photo_crops",
    "public_photos",
    "refine",
    "smooth_images",
    "widest_contrast",
    "widest_error",
    "winners_operations",
]

"""Layer peeling: activations that the update determines in closed form, from the last layer towards the image."""

from .anchor import Anchor, Peeling, peel
from .chain import find_normalised
from .config import PeelingConfig
from .head.clipped import common_scale
from .head.scale import find_scale
from .known import KnownFeatures, known_by_peeling, known_by_taps
from .smoothing import find_smoothing
from .tap_cut import TapCut, find_tap_cut

__all__ = [
    "Anchor",
    "KnownFeatures",
    "Peeling",
    "PeelingConfig",
    "TapCut",
    "common_scale",
    "find_normalised",
    "find_scale",
    "find_smoothing",
    "find_tap_cut",
    "known_by_peeling",
    "known_by_taps",
    "peel",
]

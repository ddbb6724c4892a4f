"""Layer peeling: activations that the update determines in closed form, from the last layer towards the image."""

from .anchor import Anchor, Peeling, peel
from .chain import find_normalised
from .config import PeelingConfig
from .scale import find_scale
from .scaled_head import common_scale
from .smoothing import find_smoothing

__all__ = [
    "Anchor",
    "Peeling",
    "PeelingConfig",
    "common_scale",
    "find_normalised",
    "find_scale",
    "find_smoothing",
    "peel",
]

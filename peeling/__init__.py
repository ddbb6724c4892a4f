"""Layer peeling: activations that the update determines in closed form, from the last layer towards the image."""

from .anchor import Anchor, Peeling, peel
from .config import PeelingConfig
from .scale import find_scale
from .tap_cut import TapCut, find_tap_cut

__all__ = ["Anchor", "Peeling", "PeelingConfig", "TapCut", "find_scale", "find_tap_cut", "peel"]

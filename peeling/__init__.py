"""Layer peeling: activations that the update determines in closed form, from the last layer towards the image."""

from .anchor import Anchor, Peeling, peel
from .config import PeelingConfig
from .scale import find_scale

__all__ = ["Anchor", "Peeling", "PeelingConfig", "find_scale", "peel"]

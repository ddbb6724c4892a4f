"""What of a candidate batch is held against the captured update: four ways, of one form, and in parts."""

from .anchored import Anchored
from .behind_cut import BehindCut
from .comparison import Comparison
from .match import Inside, Match, Separable
from .parted import Parted
from .plain import Plain
from .retraced import Retraced

__all__ = ["Anchored", "BehindCut", "Comparison", "Inside", "Match", "Parted", "Plain", "Retraced", "Separable"]

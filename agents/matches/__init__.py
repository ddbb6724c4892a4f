"""What of a candidate batch is held against the captured update: four ways, of one form."""

from .anchored import Anchored
from .behind_cut import BehindCut
from .comparison import Comparison
from .match import Inside, Match
from .plain import Plain
from .retraced import Retraced

__all__ = ["Anchored", "BehindCut", "Comparison", "Inside", "Match", "Plain", "Retraced"]

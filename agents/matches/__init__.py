"""What of a candidate batch is held against the captured update: three ways, of one form."""

from .anchored import Anchored
from .comparison import Comparison
from .match import Match
from .plain import Plain
from .retraced import Retraced

__all__ = ["Anchored", "Comparison", "Match", "Plain", "Retraced"]

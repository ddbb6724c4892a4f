"""What a gradient determines at the values of a network's graph, derived rule by rule.

Each rule is a file with its derivation, its rank condition and its check; `engine.RULES` lists them. A rule more is a
file more.
"""

from .convolution_input import misfits
from .engine import Derivation, Step, derive
from .knowledge import Knowledge, Known

__all__ = ["Derivation", "Knowledge", "Known", "Step", "derive", "misfits"]

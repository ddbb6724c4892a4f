"""What one look at an update determines, once, for every seed: its facts held against its evidence."""

from .evidence import Evidence, weigh_evidence
from .finding import Finding
from .pixels import check_pixels
from .scale import check_scale, confirmed_loss, found_scale
from .smoothing import check_smoothing
from .start import Start
from .target import Target

__all__ = [
    "Evidence",
    "Finding",
    "Start",
    "Target",
    "check_pixels",
    "check_scale",
    "check_smoothing",
    "confirmed_loss",
    "found_scale",
    "weigh_evidence",
]

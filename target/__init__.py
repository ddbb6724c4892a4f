"""What one look at an update determines, once, for every seed: its facts held against its evidence."""

from .evidence import Evidence, weigh_evidence
from .finding import Finding
from .scale import check_scale, found_scale

__all__ = ["Evidence", "Finding", "check_scale", "found_scale", "weigh_evidence"]

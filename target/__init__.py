"""What one look at an update determines, once, for every seed: its facts held against its evidence."""

from .evidence import Evidence, weigh_evidence
from .finding import Finding

__all__ = ["Evidence", "Finding", "weigh_evidence"]

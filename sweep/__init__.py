"""Many attacks as one audit: a grid of settings, run side by side, and the page that says what to change."""

from ..settings.sweep import SweepConfig

# The rest is imported by its module's name: it builds on the configuration of a run, of which SweepConfig is a part.
__all__ = ["SweepConfig"]

"""What is wrong with an update."""

from __future__ import annotations


class UpdateError(ValueError):
    """An update that cannot be what it claims to be, or that does not belong to the model at hand."""

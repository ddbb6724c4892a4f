"""What is wrong with an update."""

from __future__ import annotations

from ..refusal import Refusal


class UpdateError(Refusal, ValueError):
    """An update that cannot be what it claims to be, or that does not belong to the model at hand."""

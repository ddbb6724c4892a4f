"""What Ray wraps around an error on its way."""

from __future__ import annotations

from ray.exceptions import RayTaskError


def cause_of(error: Exception) -> Exception:
    """The error as it was raised in the actor, however many actors it went through."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    return error

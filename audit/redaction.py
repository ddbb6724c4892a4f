"""What of a report may be shown to others: all numbers, no picture of an image, and no name of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .results import AuditReport

LEFT_OUT = "(left out)"
# Settings that name files and folders of the user.
_PRIVATE_KEYS = frozenset(
    {"out", "update", "before", "after", "preset", "client.images", "client.weights"}
    | {"private.images", "private.labels", "audit.pool", "audit.lpips_weights"}
    | {"agents.generator_weights", "peeling.photos", "sweep.train_images", "sweep.states", "sweep.axes"}
)


def without_names(report: AuditReport) -> AuditReport:
    """The report with images called by their place in the batch, and nothing of where the user's own code lies."""
    images = tuple(replace(image, name=f"image {image.index + 1}") for image in report.images)
    plugins = tuple(replace(one, source=LEFT_OUT) for one in report.plugins)
    return replace(report, images=images, plugins=plugins)


def without_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by key, without the values that name files and folders."""
    return {key: LEFT_OUT if key in _PRIVATE_KEYS and value else value for key, value in settings.items()}

"""The page's panel on what the consensus changed: how much of it is registration's, and how much the averaging's."""

from __future__ import annotations

from typing import Any

from ..capture import PrivateBatch
from ..coordinator import Reconstruction, flatten
from .averages import all_warps_refused, plain_mean
from .charts import Chart, Series, draw_chart, group_history
from .image_result import ImageResult
from .pictures import difference, picture_cell
from .results import AuditReport

_PICTURE = 112
_TELLING_DB = 0.05
"""Below this a part shows as 0.0 dB, and is left out where the other part is told."""


def registration_chart(reconstruction: Reconstruction) -> Chart | None:
    """Agreement and refused warps over the rounds; None for fewer than three."""
    rows = [{**row, "seed": 0} for row in reconstruction.registration if "step" in row]
    if len(rows) < 3:
        return None
    lines = [(key, group_history(rows, key, [0])[0].points) for key in ("agreement", "rejected")]
    series = [Series(name, points, colour) for colour, (name, points) in enumerate(lines) if points]
    return draw_chart(series, "Agreement and rejected warps", "share", shares=True)


def registration_panel(
    report: AuditReport, reconstruction: Reconstruction, private: PrivateBatch | None, most: int
) -> dict[str, Any] | None:
    """The plain mean of the candidates beside the consensus, most changed images first.

    None where nothing was registered: a single candidate, no consensus, or ``registration.method=none``.

    Args:
        report: of the audit.
        reconstruction: that it is about.
        private: the originals; None when there is no ground truth.
        most: images shown.
    """
    mean, settings = plain_mean(reconstruction), dict(flatten(reconstruction.config))
    method, rule = settings.get("registration.method"), str(settings.get("registration.consensus", ""))
    if mean is None or method == "none" or not reconstruction.registration:
        return None
    consensus = reconstruction.consensus.detach().cpu()
    gain, pictures = difference(consensus, mean)
    refused = all_warps_refused(reconstruction)
    rows = []
    for image in sorted(report.images, key=lambda image: -(image.registration_change or 0.0))[:most]:
        place = report.consensus_order[image.index]
        original = [] if private is None else [picture_cell("original", private.images[image.index], "", _PICTURE)]
        before = picture_cell("plain mean", mean[place], image.plain_mean_psnr, _PICTURE)
        after = picture_cell("consensus", consensus[place], image.consensus_psnr, _PICTURE)
        between = picture_cell("difference", pictures[place], f"RMS {image.registration_change:.4f}", _PICTURE)
        parts = _parts(image, rule, refused)
        rows.append({"image": image, "cells": [*original, before, after, between], "parts": parts})
    total = len(report.images)
    return {"rows": rows, "gain": gain, "method": method, "rule": rule, "total": total, "refused": refused}


def _parts(image: ImageResult, rule: str, refused: bool) -> list[str]:
    """Who gained what on this image, in words; nothing is put down to registration that it did not do."""
    named = f"consensus rule ({rule})" if rule else "consensus rule"
    if refused:
        return [] if image.consensus_gain is None else [_gained(named, image.consensus_gain)]
    if image.registration_gain is None:
        return [] if image.consensus_gain is None else [_gained("consensus above plain mean", image.consensus_gain)]
    parts = [_gained("registration", image.registration_gain)]
    if image.rule_gain is not None and abs(image.rule_gain) >= _TELLING_DB:
        parts.append(_gained(named, image.rule_gain))
    return parts


def _gained(who: str, value: float) -> str:
    return f"{who}: {round(value, 1) + 0.0:+.1f} dB"

"""The page's panels on the controls and on who leaks: rows of pictures and of words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..capture import PrivateBatch
from ..coordinator import Reconstruction
from .controls import MEANINGS, NULL_CONTROLS, TITLES, Control
from .figures import quality_in_words
from .image_result import ControlScore, ImageResult
from .metrics import constant_images
from .pictures import data_uri
from .results import AuditReport
from .risk import is_dominant

_PICTURE = 112


def control_panel(
    report: AuditReport,
    reconstruction: Reconstruction,
    private: PrivateBatch | None,
    controls: Sequence[Control],
    pictured: bool = True,
) -> dict[str, Any] | None:
    """What was run, and each image's reconstruction beside what the controls make of it; None without ground truth.

    Args:
        report: of the audit.
        reconstruction: that it is about.
        private: the originals.
        controls: as run, for their pictures; a control that is missing here has numbers and no picture.
        pictured: False: numbers alone.
    """
    if private is None:
        return None
    names = ["constant_image", *(control.name for control in report.controls if not control.problem)]
    answers = {c.name: c.reconstruction for c in controls if c.reconstruction is not None}
    return {
        "summary": [_summary(report, name) for name in names],
        "problems": [(TITLES[control.name], control.problem) for control in report.controls if control.problem],
        "columns": [TITLES[name] for name in names],
        "rows": [
            {**row, "cells": [cell if pictured else cell | {"uri": None} for cell in row["cells"]]}
            for row in (_row(image, reconstruction, private, names, answers) for image in report.images)
        ],
        "alone": len(names) == 1,
    }


def exposure_panel(report: AuditReport) -> list[dict[str, Any]]:
    """One row per image, those that weigh most in the gradient first; empty when it was not measured."""
    if any(image.gradient_share is None for image in report.images):
        return []
    heaviest = max((image.gradient_share or 0.0 for image in report.images), default=0.0)
    rows = [
        {
            "image": image,
            "bar": round(100 * (image.gradient_share or 0.0) / heaviest) if heaviest else 0,
            "dominant": is_dominant(image, len(report.images)),
        }
        for image in report.images
    ]
    return sorted(rows, key=lambda row: -(row["image"].gradient_share or 0.0))


def _summary(report: AuditReport, name: str) -> dict[str, Any]:
    run = next((control for control in report.controls if control.name == name), None)
    return {
        "title": TITLES[name],
        "meaning": MEANINGS[name],
        "psnr": report.control_psnr(name),
        "ssim": report.control_ssim(name),
        "iip": report.control_iip(name),
        "effort": "" if run is None else f"{run.seeds} × {run.iterations:,}",
        "decides": name in NULL_CONTROLS,
    }


def _row(
    image: ImageResult,
    reconstruction: Reconstruction,
    private: PrivateBatch,
    names: Sequence[str],
    answers: dict[str, Reconstruction],
) -> dict[str, Any]:
    original = private.images[image.index].detach().cpu()
    cells = [
        _cell("original", original, ""),
        _cell(
            "reconstruction",
            reconstruction.images[image.position],
            quality_in_words(image.psnr, image.ssim),
            image.identified,
        ),
    ]
    for name in names:
        score = image.controls.get(name)
        if score is None:
            continue
        picture = constant_images(original[None])[0] if name == "constant_image" else None
        if name in answers and score.position is not None:
            picture = answers[name].images[score.position]
        cells.append(
            _cell(name, picture, quality_in_words(score.psnr, score.ssim), score.identified, _lead(image, score))
        )
    return {"image": image, "cells": cells}


def _cell(
    kind: str, picture: Tensor | None, caption: str, identified: bool | None = None, lead: str = ""
) -> dict[str, Any]:
    return {
        "kind": kind,
        "uri": None if picture is None else data_uri(picture.detach().cpu(), _PICTURE),
        "caption": caption,
        "identified": identified,
        "lead": lead,
    }


def _lead(image: ImageResult, score: ControlScore) -> str:
    """The reconstruction's lead over this control, with its interval; none where the private image is flat."""
    if image.flat or image.psnr is None or not math.isfinite(image.psnr) or not math.isfinite(score.psnr):
        return ""
    lead = f"{image.psnr - score.psnr:+.1f} dB"
    return lead if score.low is None or score.high is None else f"{lead} [{score.low:+.1f}, {score.high:+.1f}]"

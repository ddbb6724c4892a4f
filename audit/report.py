"""Writes what an audit found: a JSON file, a page, a picture and the reconstructed tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ..capture import PrivateBatch
from ..coordinator import Reconstruction
from .bits import bit_note
from .controls import NULL_CONTROLS, Control
from .feature_leak import FeatureLeak
from .figures import decibels
from .files import replace_files
from .image_result import ImageResult
from .page import list_seeds, render_page
from .peeling_facts import peeling_facts
from .pictures import GridRow, draw_grid
from .results import AgentResult, AuditReport, ControlResult
from .risk import risk_sentences

REPORT_VERSION = 1
"""Of ``report.json``, as its schema has it; it rises when a key changes its meaning or goes, not when one is added."""


def write_report(
    report: AuditReport,
    reconstruction: Reconstruction,
    private: PrivateBatch | None,
    out: str | Path,
    controls: Sequence[Control] = (),
    *,
    again: str = "",
    redact: bool = False,
) -> Path | str:
    """The path of ``report.html``, or its URL, after all files were written to ``out`` in one go.

    Args:
        report: from ``evaluate`` on the same reconstruction and private batch.
        reconstruction: the result of the attack.
        private: the originals, shown beside the reconstruction; None when there is no ground truth.
        out: folder or URL (``s3://``, ``gs://``, ``file://``), made when it does not exist. On a disk old files stay as
            they were until all new ones are complete.
        controls: those given to ``evaluate``, for their pictures.
        again: the command that repeats the run, for the page.
        redact: write ``report-redacted.html`` too, the page without pictures and names of files.

    Raises:
        ReportError: the folder cannot be written or the disk is full.
    """
    tensors = {
        "images": reconstruction.images.detach().cpu().float().contiguous(),
        "labels": reconstruction.labels.labels.detach().cpu().long().contiguous(),
    }
    # One key: safetensors writes several in an order that changes from run to run, and equal runs give equal bytes.
    facts = json.dumps({"pixels": "[0, 1]", "model": reconstruction.model_id})
    contents = {
        "reconstruction.safetensors": save(tensors, metadata={"gradinversion": facts}),
        "reconstruction.png": _draw(report, reconstruction, private),
        "report.json": (json.dumps(to_dict(report, reconstruction), indent=2, allow_nan=False) + "\n").encode(),
        "report.html": render_page(report, reconstruction, private, controls, again).encode(),
    }
    if redact:
        page = render_page(report, reconstruction, private, controls, redacted=True)
        contents["report-redacted.html"] = page.encode()
    folder = replace_files(out, contents)
    return folder / "report.html" if isinstance(folder, Path) else f"{folder}/report.html"


def to_dict(report: AuditReport, reconstruction: Reconstruction) -> dict[str, Any]:
    """The audit as JSON values. A number that is absent, infinite or not a number is None (``null``)."""
    values = {
        "schema_version": REPORT_VERSION,
        "psnr_mean": report.psnr_mean,
        "gain_mean": report.gain_mean,
        "means_note": report.means_note,
        "ssim_mean": report.ssim_mean,
        "bit_exact": report.bit_exact,
        "bit_note": bit_note(report.images),
        "fft2d_mean": report.fft2d_mean,
        "lpips_mean": report.lpips_mean,
        "lpips_note": report.lpips_note,
        "label_accuracy": report.label_accuracy,
        "constant_image_psnr": report.constant_image_psnr,
        "psnr_contrast_apart": report.psnr_contrast_apart,
        "no_gradient_psnr": report.no_gradient_psnr,
        "consensus_psnr": report.consensus_psnr,
        "plain_mean_psnr": report.plain_mean_psnr,
        "unregistered_psnr": report.unregistered_psnr,
        "agents_psnr": [agent.psnr_mean for agent in report.agents],
        "agents_psnr_mean": report.agents_psnr_mean,
        "rdlv_mean": report.rdlv_mean,
        "rdlv_similarity": "SSIM",
        "iip": report.iip,
        "iip_embedding": report.embedding,
        "iip_gallery": report.gallery_size,
        "pool": report.pool_note,
        "controls": [_control(report, control) for control in report.controls],
        "at_risk": [image.name for image in report.images if image.at_risk],
        "risk": risk_sentences(report),
        "rule": report.rule,
        "leak": report.verdict.leak,
        "verdict": f"{report.verdict.headline}. {report.verdict.detail}",
        "images": [_image(image) for image in report.images],
        "matching": None if report.matching is None else asdict(report.matching),
        "agents": len(list_seeds(report, reconstruction)),
        "agent_results": [_agent(agent) for agent in report.agents],
        "iterations": reconstruction.iterations,
        "rounds": reconstruction.rounds,
        "seconds": reconstruction.seconds,
        "restarts": reconstruction.restarts,
        "gradient_loss": reconstruction.gradient_loss,
        "outcome": reconstruction.outcome,
        "messages": reconstruction.messages,
        "labels": {
            "method": reconstruction.labels.method,
            "assumption": reconstruction.labels.assumption,
            "warnings": reconstruction.labels.warnings,
            **_label_scores(report),
            "counts": [asdict(found) for found in reconstruction.labels.class_counts],
        },
        "registration": reconstruction.registration,
        "facts": [{**asdict(fact), "doubtful": fact.doubtful} for fact in reconstruction.facts],
        "truth_gap": report.truth_gap,
        "peeling": _peeling(reconstruction),
        "features": None if report.features is None else _features(report.features),
        "assumptions": report.assumptions,
        "plugins": [asdict(one) for one in report.plugins],
        "provenance": report.provenance,
        "config": reconstruction.config,
    }
    plain = _plain(values)
    assert isinstance(plain, dict)
    return plain


def _peeling(reconstruction: Reconstruction) -> dict[str, Any] | None:
    height, width = reconstruction.images.shape[-2:]
    record = reconstruction.peeling
    return None if record is None else peeling_facts(record, (height, width))


def _control(report: AuditReport, control: ControlResult) -> dict[str, Any]:
    return {
        **asdict(control),
        "psnr_mean": report.control_psnr(control.name),
        "ssim_mean": report.control_ssim(control.name),
        "iip": report.control_iip(control.name),
        "decides": control.name in NULL_CONTROLS,
    }


def _agent(agent: AgentResult) -> dict[str, Any]:
    return {**asdict(agent), "psnr_mean": agent.psnr_mean, "ssim_mean": agent.ssim_mean, "iip": agent.iip}


def _features(leak: FeatureLeak) -> dict[str, Any]:
    return {**asdict(leak), "recognised": leak.recognised}


def _label_scores(report: AuditReport) -> dict[str, Any]:
    """How right the labels are, or None for each score without ground truth."""
    scores = report.label_scores
    if scores is None:
        return {"class_presence": None, "class_count": None, "instances": None}
    return scores.to_dict()


def _image(image: ImageResult) -> dict[str, Any]:
    fields = asdict(image)
    return {
        **fields,
        "source": str(image.source),
        "source_seed": image.source.seed,
        "gain": image.gain,
        "bit_exact": None if image.bits is None or image.bits.exact_share is None else image.bits.exact,
        "flat": image.flat,
        "consensus_gain": image.consensus_gain,
        "rule_gain": image.rule_gain,
        "registration_gain": image.registration_gain,
        "no_gradient_psnr": image.no_gradient_psnr,
        "at_risk": image.at_risk,
        "leak": image.verdict.leak,
        "verdict": image.verdict.headline,
        "reason": image.verdict.detail,
    }


def _plain(value: object) -> Any:
    """``value`` as JSON allows it: no NaN, no infinity, no type of torch or numpy."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, torch.Tensor) or (hasattr(value, "tolist") and callable(value.tolist)):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return str(value)
    return value if value is None or isinstance(value, bool | int) else str(value)


def _draw(report: AuditReport, reconstruction: Reconstruction, private: PrivateBatch | None) -> bytes:
    positions = [image.position for image in report.images]
    captions = [f"label {image.label}" if image.psnr is None else _caption(image) for image in report.images]
    rows = [GridRow("reconstruction", reconstruction.images[positions], captions)]
    if private is not None:
        names = [f"label {image.true_label} {image.name}" for image in report.images]
        rows.insert(0, GridRow("original", private.images, names))
    return draw_grid(rows)


def _caption(image: ImageResult) -> str:
    if image.psnr is None or math.isnan(image.psnr):
        return "not finite"
    similar = "" if image.ssim is None or not math.isfinite(image.ssim) else f" · SSIM {image.ssim:.2f}"
    return f"{decibels(image.psnr)}{similar}"

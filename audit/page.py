"""The report as one self-contained HTML page: what the template is given, and nothing it has to compute."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup
from torch import Tensor

from ..agents import Outcome
from ..capture import PrivateBatch
from ..coordinator import Reconstruction
from .assumptions import as_sentence, counted, flatten
from .charts import COLOURS, Chart, Series, draw_chart, draw_ruler, group_history
from .control_panel import control_panel, exposure_panel
from .controls import Control
from .evaluate import candidate_images, plain_mean
from .pictures import data_uri, difference
from .results import AuditReport
from .risk import risk_sentences
from .verdict import MARGIN_DB, Leak, decibels

SHOWN_AGENTS = 8
"""Agents that get a column of pictures; the numbers cover all of them."""
SHOWN_ROWS = 12
"""Images shown at once; further ones are folded away."""
_SMALL, _LARGE = 112, 224
"""Longest side in pixels of an embedded picture."""
_SHORT = {
    Leak.LEAKED: "leaked",
    Leak.WEAK: "weak leak",
    Leak.NONE: "no leak shown",
    Leak.UNKNOWN: "cannot be told",
    Leak.FAILED: "not finite",
}


def render_page(
    report: AuditReport,
    reconstruction: Reconstruction,
    private: PrivateBatch | None,
    controls: Sequence[Control] = (),
) -> str:
    """The page as text. It fetches nothing: style, plots and pictures are inside.

    Args:
        report: from ``evaluate`` on the same reconstruction.
        reconstruction: the result of the attack.
        private: the originals to show beside it; None when there is no ground truth.
        controls: those given to ``evaluate``, for their pictures.
    """
    folder = files(__package__)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(
        db=_db,
        number=_number,
        share=_share,
        share_fine=_share_fine,
        plain=_plain,
        sentence=as_sentence,
        counted=counted,
    )
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    seeds = list_seeds(report, reconstruction)
    return template.render(
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),
        report=report,
        run=reconstruction,
        known=private is not None,
        rule=report.rule,
        controls=control_panel(report, reconstruction, private, controls),
        exposure=exposure_panel(report),
        risk=risk_sentences(report),
        label_sentence=_label_sentence(report),
        label_scores=_label_scores(report),
        label_rows=_label_rows(report, reconstruction),
        unfinished=_unfinished(reconstruction),
        tiles=_tiles(report, reconstruction, len(seeds)),
        ruler=_ruler(report),
        columns=_columns(report, private, seeds),
        short=_SHORT,
        rows=_picture_rows(report, reconstruction, private),
        shown_rows=SHOWN_ROWS,
        shown_agents=SHOWN_AGENTS,
        legend=[(f"seed {seed}", colour) for colour, seed in enumerate(seeds[:COLOURS])],
        quiet=max(0, len(seeds) - COLOURS),
        charts=_loss_charts(reconstruction, seeds),
        registration_chart=_registration_chart(reconstruction),
        registration_panel=_registration_panel(report, reconstruction, private),
        registration_columns=_keys(reconstruction.registration),
        loss_columns=_keys([agent.losses for agent in report.agents]),
        duration=_duration(reconstruction.seconds),
        config=[f"{name}={_plain(value)}" for name, value in flatten(reconstruction.config)],
    )


def list_seeds(report: AuditReport, reconstruction: Reconstruction) -> list[int]:
    """Surviving seeds in their order, then those that only left a history."""
    surviving = [agent.seed for agent in report.agents]
    return surviving + sorted({int(row["seed"]) for row in reconstruction.history} - set(surviving))


def _label_sentence(report: AuditReport) -> str:
    total = len(report.images)
    if report.label_accuracy is None:
        return "Labels were inferred from the update; without ground truth nobody can say how many are right."
    right = round(report.label_accuracy * total)
    return f"Labels: {right} of {total} recovered from the update ({report.label_accuracy:.0%})."


def _label_scores(report: AuditReport) -> list[tuple[str, str, str]]:
    """Name, value and meaning of each score of the labels; empty without ground truth."""
    scores = report.label_scores
    if scores is None:
        return []
    return [
        ("Class presence, precision", _share(scores.precision), "of the classes recovered, those in the batch"),
        ("Class presence, recall", _share(scores.recall), "of the classes in the batch, those recovered"),
        ("Class count", _share(scores.class_count), "of all classes on either side, those with the right count"),
        ("Instances", _share(scores.instances), "of the private labels, those recovered"),
    ]


def _label_rows(report: AuditReport, run: Reconstruction) -> list[tuple[int, int, str, int | None]]:
    """Class, its recovered count, the confidence in it, and the true count; classes that were missed come last."""
    known = report.label_scores is not None
    true = Counter(image.true_label for image in report.images)
    rows: list[tuple[int, int, str, int | None]] = [
        (found.label, found.count, _share(found.confidence), true[found.label] if known else None)
        for found in run.labels.class_counts
    ]
    recovered = {row[0] for row in rows}
    missed = sorted(label for label in true if label is not None and label not in recovered)
    return rows + [(label, 0, "–", true[label]) for label in missed]


def _unfinished(run: Reconstruction) -> str:
    """Why a run with a result ended early; without a result the verdict says it."""
    return run.outcome.value if run.candidates and run.outcome is not Outcome.FINISHED else ""


def _tiles(report: AuditReport, run: Reconstruction, agents: int) -> list[tuple[str, str, str]]:
    """Name, value and note of each headline number."""
    effort = ("Effort", f"{agents} × {run.iterations:,}", f"agents × steps; {_duration(run.seconds)}")
    loss = ("Gradient loss", _number(run.gradient_loss), "of the reconstruction")
    confidence = sum(image.confidence for image in report.images) / len(report.images)
    agreement = sum(image.agreement for image in report.images) / len(report.images)
    if report.label_accuracy is None:
        labels = ("Label confidence", _share(confidence), "mean; not checked against the truth")
        return [loss, labels, ("Agreement of the seeds", _share(agreement), "mean over the images"), effort]
    right = round(report.label_accuracy * len(report.images))
    psnr, floor = report.psnr_mean, report.constant_image_psnr
    comparable = psnr is not None and floor is not None and math.isfinite(floor) and not math.isnan(psnr)
    above = f"{psnr - floor:+.1f} dB" if comparable and psnr is not None and floor is not None else "–"
    recognised = sum(bool(image.identified) for image in report.images)
    pool = f"among {report.gallery_size:,} images (IIP {_share(report.iip)})" if report.gallery_size else ""
    identified = [("Recognised", f"{recognised} of {len(report.images)}", pool)] if pool else []
    return [
        ("Reconstruction", _db(psnr), "mean PSNR"),
        ("Constant image", _db(floor), "mean PSNR: the floor"),
        ("Above the floor", above, f"counts from {MARGIN_DB:+g} dB"),
        ("Labels", f"{right} of {len(report.images)}", "recovered"),
        *identified,
        ("SSIM", _number(report.ssim_mean), "mean; 1 is equal"),
        loss,
        effort,
    ]


def _ruler(report: AuditReport) -> object:
    psnr, floor, consensus = report.psnr_mean, report.constant_image_psnr, report.consensus_psnr
    if psnr is None or floor is None:
        return None
    agents = [agent.psnr_mean for agent in report.agents if agent.psnr_mean is not None]
    rows = [("agents", agents), ("consensus", [consensus] if consensus is not None else []), ("reconstruction", [psnr])]
    return draw_ruler(rows, floor, MARGIN_DB)


def _columns(report: AuditReport, private: PrivateBatch | None, seeds: Sequence[int]) -> list[dict[str, Any]]:
    shown = report.agents[:SHOWN_AGENTS]
    agents = [{"kind": "agent", "title": f"seed {agent.seed}", "colour": seeds.index(agent.seed)} for agent in shown]
    original = [] if private is None else [{"kind": "original", "title": "original", "colour": None}]
    ends = [{"kind": kind, "title": kind, "colour": None} for kind in ("consensus", "reconstruction")]
    return original + agents + ends


def _picture_rows(
    report: AuditReport, reconstruction: Reconstruction, private: PrivateBatch | None
) -> list[dict[str, Any]]:
    """One row per image: its result, and its cells in the order of the columns."""
    candidates = candidate_images(reconstruction)[:SHOWN_AGENTS]
    shown = report.agents[:SHOWN_AGENTS]
    large = _LARGE if len(report.images) <= SHOWN_ROWS else _SMALL
    rows = []
    for row, image in enumerate(report.images):
        cells = [] if private is None else [_cell("original", private.images[row], image.constant_image_psnr, large)]
        for agent, batch in zip(shown, candidates, strict=True):
            psnr = None if agent.psnr is None else agent.psnr[row]
            cells.append(_cell("agent", batch[agent.order[row]], psnr, _SMALL, image.source == f"seed {agent.seed}"))
        consensus = reconstruction.consensus[report.consensus_order[row]]
        cells.append(_cell("consensus", consensus, image.consensus_psnr, _SMALL, image.source == "consensus"))
        cells.append(_cell("reconstruction", reconstruction.images[image.position], image.psnr, large))
        rows.append({"image": image, "cells": cells})
    return rows


def _cell(kind: str, picture: Tensor, psnr: float | None, largest: int, chosen: bool = False) -> dict[str, Any]:
    caption = "" if psnr is None else _db(psnr) if kind != "original" else f"floor {_db(psnr)}"
    return {"kind": kind, "uri": data_uri(picture, largest), "caption": caption, "chosen": chosen}


def _loss_charts(reconstruction: Reconstruction, seeds: Sequence[int]) -> list[Chart]:
    marks = [float(row["step"]) for row in reconstruction.registration if "step" in row]
    terms = (("gradient", "Gradient loss"), ("total", "Total loss"))
    charts = (
        draw_chart(group_history(reconstruction.history, term, seeds), title, title.lower(), marks=marks)
        for term, title in terms
    )
    return [chart for chart in charts if chart is not None]


def _registration_chart(reconstruction: Reconstruction) -> Chart | None:
    rows = [{**row, "seed": 0} for row in reconstruction.registration if "step" in row]
    if len(rows) < 3:
        return None
    lines = [(key, group_history(rows, key, [0])[0].points) for key in ("agreement", "rejected")]
    series = [Series(name, points, colour) for colour, (name, points) in enumerate(lines) if points]
    return draw_chart(series, "Agreement and rejected warps", "share", shares=True)


def _registration_panel(
    report: AuditReport, reconstruction: Reconstruction, private: PrivateBatch | None
) -> dict[str, Any] | None:
    """What registration changed: the plain mean of the candidates beside the consensus, most changed images first.

    None where nothing was registered: a single candidate, no consensus, or ``registration.method=none``.
    """
    mean = plain_mean(reconstruction)
    method = dict(flatten(reconstruction.config)).get("registration.method")
    if mean is None or method == "none" or not reconstruction.registration:
        return None
    consensus = reconstruction.consensus.detach().cpu()
    gain, pictures = difference(consensus, mean)
    most_changed = sorted(report.images, key=lambda image: -(image.registration_change or 0.0))
    rows = []
    for image in most_changed[:SHOWN_ROWS]:
        place = report.consensus_order[image.index]
        original = [] if private is None else [_cell("original", private.images[image.index], None, _SMALL)]
        before = _cell("plain mean", mean[place], image.plain_mean_psnr, _SMALL)
        after = _cell("consensus", consensus[place], image.consensus_psnr, _SMALL)
        between = _cell("difference", pictures[place], None, _SMALL)
        between["caption"] = f"RMS {image.registration_change:.4f}"
        gained = None if image.registration_gain is None else round(image.registration_gain, 1) + 0.0
        rows.append({"image": image, "cells": [*original, before, after, between], "gained": gained})
    return {"rows": rows, "gain": gain, "method": method, "total": len(report.images)}


def _keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All keys of the rows in the order in which they first occur."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _db(value: float | None) -> str:
    if value is None:
        return "–"
    return "not finite" if math.isnan(value) else decibels(value)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if math.isfinite(value) else ("∞" if value > 0 else "not finite")


def _share_fine(value: float) -> str:
    """A share of any size: rounding of float32 is no 0 %."""
    return f"{value:.1%}" if value >= 0.001 else f"{100 * value:.1g} %"


def _share(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.0%}"


def _plain(value: object) -> str:
    """A configuration or history value as a person writes it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ",".join(_plain(item) for item in value)
    return str(value)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"

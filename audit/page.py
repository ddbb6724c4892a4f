"""The report as one self-contained HTML page: what the template is given, and nothing it has to compute."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from ..agents import Outcome
from ..capture import PrivateBatch, Provenance
from ..coordinator import Reconstruction, flatten
from .assumptions import GIVEN_LABELS, as_sentence, counted
from .averages import candidate_images
from .bits import bit_note
from .charts import COLOURS, Chart, draw_chart, draw_ruler, group_history
from .control_panel import control_panel, exposure_panel
from .controls import Control
from .environment import page_environment
from .figures import duration, psnr_in_words, quality_in_words, share_in_words, share_not_rounded_up
from .image_result import ImageResult
from .label_panel import label_rows, label_scores, label_sentence, label_tile
from .next_steps import next_steps
from .peeling_panel import SHOWN_PLACES, peeling_panel
from .pictures import picture_cell
from .redaction import without_names, without_paths
from .registration_panel import registration_chart, registration_panel
from .results import AuditReport
from .risk import risk_sentences
from .verdict import MARGIN_DB, Leak

SHOWN_AGENTS = 8
"""Agents that get a column of pictures; the numbers cover all of them."""
SHOWN_ROWS = 12
"""Images shown at once; further ones are folded away."""
_SMALL, _LARGE = 112, 224
"""Longest side in pixels of an embedded picture."""
_STYLES = ("report.css", "peeling.css", "print.css")
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
    again: str = "",
    redacted: bool = False,
) -> str:
    """The page as text. It fetches nothing: style, plots and pictures are inside.

    Args:
        report: from ``evaluate`` on the same reconstruction.
        reconstruction: the result of the attack.
        private: the originals to show beside it; None when there is no ground truth.
        controls: those given to ``evaluate``, for their pictures.
        again: the command that repeats the run; empty where there is none.
        redacted: without any picture of an image and without names of files.
    """
    settings = dict(flatten(reconstruction.config))
    if redacted:
        report, settings = without_names(report), without_paths(settings)
    folder = files(__package__)
    environment = page_environment(
        db=psnr_in_words,
        number=_number,
        share=share_in_words,
        share_fine=_share_fine,
        exact_share=lambda value: "–" if value is None else share_not_rounded_up(value),
        plain=_plain,
        sentence=as_sentence,
        counted=counted,
        picture_width=_picture_width,
    )
    environment.loader = jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8"))
    template = environment.get_template("report.html.j2")
    seeds = list_seeds(report, reconstruction)
    height, width = reconstruction.images.shape[-2:]
    return template.render(
        style=Markup("".join((folder / name).read_text(encoding="utf-8") for name in _STYLES)),
        report=report,
        defence_note=_defence_note(reconstruction),
        run=reconstruction,
        known=private is not None,
        rule=report.rule,
        redacted=redacted,
        again="" if redacted else again,
        next_steps=next_steps(report, reconstruction),
        controls=control_panel(report, reconstruction, private, controls, pictured=not redacted),
        exposure=exposure_panel(report),
        peeling=peeling_panel(reconstruction.peeling, (height, width)),
        shown_places=SHOWN_PLACES,
        bit_note=bit_note(report.images),
        bits_seen=any(image.bits is not None and (image.bits.exact or image.bits.seen) for image in report.images),
        risk=risk_sentences(report),
        label_sentence=label_sentence(report, reconstruction),
        label_scores=label_scores(report),
        label_rows=label_rows(report, reconstruction),
        labels_given=reconstruction.labels.method == GIVEN_LABELS,
        unfinished=_unfinished(reconstruction),
        tiles=_tiles(report, reconstruction, len(seeds)),
        ruler=_ruler(report),
        columns=_columns(report, private, seeds),
        short=_SHORT,
        rows=[] if redacted else _picture_rows(report, reconstruction, private),
        shown_rows=SHOWN_ROWS,
        shown_agents=SHOWN_AGENTS,
        legend=[(f"seed {seed}", colour) for colour, seed in enumerate(seeds[:COLOURS])],
        quiet=max(0, len(seeds) - COLOURS),
        charts=_loss_charts(reconstruction, seeds),
        registration_chart=registration_chart(reconstruction),
        registration_panel=None if redacted else registration_panel(report, reconstruction, private, SHOWN_ROWS),
        unregistered=settings.get("registration.method") == "none",
        registration_columns=_keys(reconstruction.registration),
        loss_columns=_keys([agent.losses for agent in report.agents]),
        duration=duration(reconstruction.seconds),
        newline=Markup("\n"),
        config=[f"{name}={_plain(value)}" for name, value in settings.items()],
    )


def list_seeds(report: AuditReport, reconstruction: Reconstruction) -> list[int]:
    """Surviving seeds in their order, then those that only left a history."""
    surviving = [agent.seed for agent in report.agents]
    return surviving + sorted({int(row["seed"]) for row in reconstruction.history} - set(surviving))


def _unfinished(run: Reconstruction) -> str:
    """Why a run with a result ended early; without a result the verdict says it."""
    return run.outcome.value if run.candidates and run.outcome is not Outcome.FINISHED else ""


def _tiles(report: AuditReport, run: Reconstruction, agents: int) -> list[tuple[str, str, str]]:
    """Name, value and note of each headline number."""
    effort = ("Effort", f"{agents} × {run.iterations:,}", f"agents × steps; {duration(run.seconds)}")
    loss = ("Gradient loss", _number(run.gradient_loss), "of the reconstruction")
    if report.label_accuracy is None:
        return [loss, label_tile(report, run), _agreement(report), effort]
    psnr, floor, gain = report.psnr_mean, report.constant_image_psnr, report.gain_mean
    left_out = sum(image.flat for image in report.images)
    over = f"over {len(report.images) - left_out} of {len(report.images)} images" if left_out else ""
    above = "–" if gain is None else "∞ dB" if gain == math.inf else f"{gain:+.1f} dB"
    bar = "–" if floor is None or not math.isfinite(floor) else psnr_in_words(floor)
    recognised = sum(bool(image.identified) for image in report.images)
    pool = f"among {report.gallery_size:,} images (IIP {share_in_words(report.iip)})" if report.gallery_size else ""
    identified = [("Recognised", f"{recognised} of {len(report.images)}", pool)] if pool else []
    return [
        ("Reconstruction", psnr_in_words(psnr), f"mean PSNR {over}".strip()),
        ("Constant image", bar, f"mean PSNR: the floor{'; a flat image has none' if left_out else ''}"),
        ("Above the floor", above, f"counts from {MARGIN_DB:+g} dB"),
        ("SSIM", _number(report.ssim_mean), "mean; 1 is equal"),
        *identified,
        *(
            [("Bit for bit", f"{report.bit_exact} of {len(report.images)}", "equal in all 8 bits")]
            if report.bit_exact
            else []
        ),
        label_tile(report, run),
        loss,
        effort,
    ]


def _agreement(report: AuditReport) -> tuple[str, str, str]:
    if len(report.agents) < 2:
        return "Agreement of the seeds", "–", "a single seed agrees with nobody"
    agreement = sum(image.agreement for image in report.images) / len(report.images)
    return "Agreement of the seeds", share_in_words(agreement), "mean over the images"


def _floor(image: ImageResult) -> str:
    if image.constant_image_psnr is None:
        return ""
    return "flat: no floor" if image.flat else f"floor {psnr_in_words(image.constant_image_psnr)}"


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
        cells = [] if private is None else [picture_cell("original", private.images[row], _floor(image), large)]
        for agent, batch in zip(shown, candidates, strict=True):
            values = (None if one is None else one[row] for one in (agent.psnr, agent.ssim))
            words, chosen = quality_in_words(*values), image.source.seed == agent.seed
            cells.append(picture_cell("agent", batch[agent.order[row]], words, _SMALL, chosen))
        consensus = reconstruction.consensus[report.consensus_order[row]]
        words = quality_in_words(image.consensus_psnr, image.consensus_ssim)
        cells.append(picture_cell("consensus", consensus, words, _SMALL, not image.source.of_one_seed))
        words = quality_in_words(image.psnr, image.ssim)
        cells.append(picture_cell("reconstruction", reconstruction.images[image.position], words, large))
        rows.append({"image": image, "cells": cells})
    return rows


def _loss_charts(reconstruction: Reconstruction, seeds: Sequence[int]) -> list[Chart]:
    marks = [float(row["step"]) for row in reconstruction.registration if "step" in row]
    terms = (("gradient", "Gradient loss"), ("total", "Total loss"))
    charts = (
        draw_chart(group_history(reconstruction.history, term, seeds), title, title.lower(), marks=marks)
        for term, title in terms
    )
    return [chart for chart in charts if chart is not None]


def _keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All keys of the rows in the order in which they first occur."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _picture_width(columns: int) -> int:
    """So wide that the table fits a window of 1,200 pixels, beside the words in front."""
    return min(128, 80 if columns > 8 else 900 // columns - 12)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if math.isfinite(value) else ("∞" if value > 0 else "not finite")


def _share_fine(value: float) -> str:
    """A share of any size: rounding of float32 is no 0 %."""
    return f"{value:.1%}" if value >= 0.001 else f"{100 * value:.1g} %"


def _defence_note(run: Reconstruction) -> str:
    """That nobody told of defences, where nobody did."""
    unknown = any(fact.name == "defences" and fact.provenance is Provenance.ASSUMED for fact in run.facts)
    return " (assumed)" if unknown else ""


def _plain(value: object) -> str:
    """A configuration or history value as a person writes it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ",".join(_plain(item) for item in value)
    return str(value)

"""The audit as one page: what the template is given, and nothing it has to compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from itertools import product
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from ..audit.assumptions import as_sentence, counted
from ..audit.environment import page_environment
from ..audit.figures import duration, psnr_in_words, share_in_words
from ..audit.verdict import STRICT_RULE
from ..settings.keys import format_value
from ..settings.run import settings
from .changes import Change
from .facts import AuditFacts
from .grid import CELLS, UNDEFENDED, Grid
from .kinds import Kind
from .outcomes import Effect
from .price import Training
from .results import CellResult, State
from .verdict import ORDER, GridVerdict

_STYLE_OF_RUN = f"{__package__.rpartition('.')[0]}.audit"
SHOWN_CHANGES = 12
"""Rows of the table of changes that are shown at once."""
SHOWN_PICTURES = 12
"""Cells whose pictures are shown at once, those that leak most first."""
_SHADES = 10
"""Steps of colour in a heat map."""

_Notes = Callable[[CellResult], list[str]]


def _leaked(result: CellResult) -> list[str]:
    judged = result.images - result.unknown
    untold = [f"{result.unknown} cannot be told"] if result.unknown else []
    return [f"{result.leaked} of {judged}" + (f", {result.weak} weak" if result.weak else ""), *untold]


def _classes(result: CellResult) -> list[str]:
    scores = result.label_scores
    if scores is None:
        return []
    presence = f"classes {share_in_words(scores.recall)} / {share_in_words(scores.precision)}"
    return [presence, f"counts {share_in_words(scores.class_count)}"]


# Title, what it says, the number that colours, and what stands below it.
_MAPS: tuple[tuple[str, str, Callable[[CellResult], float | None], _Notes], ...] = (
    (
        "Leaked share",
        "Images that leaked, of those in the batch that could be judged.",
        lambda result: result.share,
        _leaked,
    ),
    (
        "Image identifiability precision (IIP)",
        "Reconstructions whose nearest image in the gallery is the right original.",
        lambda result: result.iip,
        lambda result: [],
    ),
    (
        "Label leakage",
        "Large: instances, the share of the private labels that were recovered from the update. Classes: of those in "
        "the batch the share that was found / of those that were named the share that is there. Counts: the share of "
        "the classes on either side whose number of images is right. Labels that were given to the attack "
        "(labels=) are not counted.",
        lambda result: result.labels,
        _classes,
    ),
)


def render(facts: AuditFacts, verdict: GridVerdict, provenance: Mapping[str, str]) -> str:
    """The page as text. It fetches nothing: style and pictures are inside; links lead to the cells' own pages."""
    environment = page_environment(
        sentence=as_sentence,
        stopped=_stopped,
        counted=counted,
        db=psnr_in_words,
        share=share_in_words,
        duration=partial(duration, decimals=0),
    )
    folder = files(__package__)
    template = environment.from_string((folder / "audit.html.j2").read_text(encoding="utf-8"))
    of_run = files(_STYLE_OF_RUN)
    styles = [of_run / "report.css", folder / "audit.css", of_run / "print.css"]
    cells = [_cell(facts, position) for position in range(len(facts.grid.cells))]
    pictured = sorted((cell for cell in cells if cell["result"].worst), key=_exposure, reverse=True)
    return template.render(
        style=Markup("\n".join(style.read_text(encoding="utf-8") for style in styles)),
        verdict=verdict,
        worst_case=verdict.worst_case,
        several=any(not axis.kind.is_setting and len(axis.levels) > 1 for axis in facts.grid.axes),
        kind={True: "leaked", False: "none", None: "failed"}[verdict.leaks],
        order=ORDER,
        newline=Markup("\n"),
        rule=STRICT_RULE,
        config=facts.config,
        provenance=provenance,
        tiles=_tiles(facts, cells),
        maps=_maps(facts),
        cells=cells,
        pictured=pictured,
        shown_pictures=SHOWN_PICTURES,
        unscored=_unscored(facts),
        embeddings=sorted({cell["result"].embedding for cell in cells} - {""}),
        risks=_risks(facts),
        unfinished=_by_reason(cells),
        problems=[cell for cell in cells if cell["result"].problems],
        changes=verdict.changes,
        shown_changes=SHOWN_CHANGES,
        effects=_EFFECTS,
        levels={"weak": "weakly visible", "none": "not shown", "unknown": "cannot be told"},
        prices=bool(facts.prices),
        price=_price,
        placed=any(change.exact_places is not None for change in verdict.changes),
        accuracies=_accuracies(facts),
        accuracy_problems=facts.accuracy_problems,
        trained=facts.accuracies.get(UNDEFENDED) or next(iter(facts.accuracies.values()), None),
        notes=facts.notes,
        seconds=facts.seconds,
        whole_command=facts.whole_command,
        settings=[f"{name}={format_value(value)}" for name, value in settings(facts.config).items()],
        done=State.DONE,
    )


_EFFECTS = {Effect.STOPS: "calm", Effect.UNPROVEN: "weak", Effect.LEAKS: "leaked", Effect.UNKNOWN: "quiet"}


def _cell(facts: AuditFacts, position: int) -> dict[str, Any]:
    cell = facts.grid.cells[position]
    return {
        "title": cell.title,
        "base": not facts.grid.changes(cell.levels),
        "result": facts.results[cell.name],
        "link": _link(cell.name),
        "command": facts.command(cell.name),
    }


def _link(name: str) -> str:
    return quote(f"{CELLS}/{name}/report.html")


def _by_reason(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells without a result, those with the same reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        result = cell["result"]
        if result.state is not State.DONE:
            found.setdefault((str(result.state), result.sentence), []).append(cell["title"])
    return [{"state": state, "sentence": sentence, "titles": titles} for (state, sentence), titles in found.items()]


def _risks(facts: AuditFacts) -> dict[str, Any] | None:
    """Each private image at the user's settings, once for all that is no setting; None where no such cell has a result.

    ``stages`` says whether the columns are model states alone: only these follow each other in time.
    """
    grid = facts.grid
    free = [i for i, axis in enumerate(grid.axes) if not axis.kind.is_setting and len(axis.levels) > 1]
    known = [
        (cell.levels, facts.results[cell.name])
        for cell in grid.cells
        if not grid.changes(cell.levels) and facts.results[cell.name].state is State.DONE
    ]
    known = sorted(((levels, result) for levels, result in known if result.risks), key=lambda pair: pair[0])
    if not known:
        return None
    names = list(dict.fromkeys(risk.name for _, result in known for risk in result.risks))
    columns = [
        ", ".join(grid.axes[i].levels[levels[i]].name for i in free) or "at your settings" for levels, _ in known
    ]
    by_name = [{risk.name: risk for risk in result.risks} for _, result in known]
    return {
        "columns": columns,
        "stages": len(columns) > 1 and [grid.axes[i].kind for i in free] == [Kind.STATE],
        "rows": [{"name": name, "risks": [one.get(name) for one in by_name]} for name in names],
    }


def _exposure(cell: dict[str, Any]) -> tuple[float, float]:
    worst, result = cell["result"].worst, cell["result"]
    return result.share or 0.0, (worst.psnr or 0.0) - (worst.control_psnr or 0.0)


def _unscored(facts: AuditFacts) -> str:
    """What is missing of cells that an earlier version finished, in one sentence."""
    done = [result for result in facts.results.values() if result.state is State.DONE]
    count = sum(result.labels is not None and result.label_scores is None for result in done)
    if not count:
        return ""
    were, own = ("was", "its own page has") if count == 1 else ("were", "their own pages have")
    return (
        f"{counted(count, 'cell')} {were} finished by an earlier version, which kept of the labels the share of "
        f"instances alone: {own} the classes and counts."
    )


def _tiles(facts: AuditFacts, cells: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    results = [cell["result"] for cell in cells]
    done = [result for result in results if result.state is State.DONE]
    failed = sum(result.state is State.FAILED for result in results)
    others = len(results) - len(done) - failed
    rest = ", ".join(text for number, text in ((failed, f"{failed} failed"), (others, f"{others} not run")) if number)
    leaking = sum(bool(result.leaked) for result in done)
    images, leaked = sum(result.images for result in done), sum(result.leaked for result in done)
    efforts = sorted({(result.agents, result.iterations) for result in done})
    effort = f"{efforts[0][0]} × {efforts[0][1]:,}" if len(efforts) == 1 else "varied" if efforts else "–"
    return [
        ("Cells", f"{len(done)} of {len(results)}", rest or "all have a result"),
        ("Cells that leak", f"{leaking} of {len(done)}", "at least one image leaked"),
        ("Leaks, all cells together", f"{leaked} of {images}", "each cell attacks its images anew"),
        ("Effort per cell", effort, "agents × steps, and as much for each control"),
        ("Time", duration(facts.seconds, 0), "of this run of the audit"),
    ]


def _maps(facts: AuditFacts) -> list[dict[str, Any]]:
    found = []
    for title, meaning, number, notes in _MAPS:
        panels = _panels(facts, number, notes)
        known = any(entry["value"] is not None for panel in panels for row in panel["rows"] for entry in row["entries"])
        found.append({"title": title, "meaning": meaning, "panels": panels, "known": known})
    return found


def _panels(facts: AuditFacts, number: Callable[[CellResult], float | None], notes: _Notes) -> list[dict[str, Any]]:
    """One table per combination of the axes that are neither rows (defences) nor columns (batch sizes)."""
    grid = facts.grid
    by_levels = {cell.levels: cell for cell in grid.cells}
    at = {axis.kind: position for position, axis in enumerate(grid.axes)}
    rows, columns = at[Kind.DEFENCE], at[Kind.BATCH]
    others = [position for position in range(len(grid.axes)) if position not in (rows, columns)]
    panels = []
    for place in product(*(range(len(grid.axes[position].levels)) for position in others)):
        fixed = dict(zip(others, place, strict=True))
        table = []
        for row, level in enumerate(grid.axes[rows].levels):
            entries = []
            for column in range(len(grid.axes[columns].levels)):
                levels = tuple((fixed | {rows: row, columns: column})[i] for i in range(len(grid.axes)))
                cell = by_levels[levels]
                entries.append(_entry(cell.name, facts.results[cell.name], number, notes, not grid.changes(levels)))
            table.append({"name": level.name, "entries": entries})
        names = [grid.axes[position].levels[level].name for position, level in reversed(fixed.items())]
        panels.append({"title": ", ".join(names), "columns": _names(grid, columns), "rows": table})
    return panels


def _names(grid: Grid, position: int) -> list[str]:
    return [level.name for level in grid.axes[position].levels]


def _entry(
    name: str,
    result: CellResult,
    number: Callable[[CellResult], float | None],
    notes: _Notes,
    base: bool,
) -> dict[str, Any]:
    value = number(result) if result.state is State.DONE else None
    return {
        "value": value,
        "text": share_in_words(value) if value is not None else _nothing(result, number),
        "notes": notes(result) if value is not None else [],
        "shade": 0 if value is None else round(_SHADES * value),
        "link": _link(name) if result.state is State.DONE else None,
        "hint": result.sentence,
        "base": base,
    }


def _nothing(result: CellResult, number: Callable[[CellResult], float | None]) -> str:
    """In place of a number that a cell does not have."""
    if result.state is not State.DONE:
        return str(result.state)
    return "cannot be told" if number is _MAPS[0][2] and result.unknown else "–"


def _price(change: Change) -> str:
    """What a change's defence costs, as a cell of the table."""
    if change.price is not None and not change.price.usable:
        return "not finite" if change.price.training is Training.NOT_FINITE else "learned nothing"
    return "–" if change.cost is None else f"{-100 * change.cost + 0.0:+.1f}"


def _accuracies(facts: AuditFacts) -> list[dict[str, Any]]:
    costs = facts.accuracy_costs
    names = sorted(facts.accuracies, key=lambda name: (name != UNDEFENDED, costs.get(name, 0.0)))
    return [
        {
            "name": name,
            "mean": facts.accuracies[name].mean,
            "low": min(facts.accuracies[name].values),
            "high": max(facts.accuracies[name].values),
            "cost": costs.get(name),
            "learning_rate": facts.accuracies[name].learning_rate,
        }
        for name in names
    ]


def _stopped(text: str) -> str:
    """With a full stop; its first word may be a key, and stays as it is."""
    return text if text.endswith((".", "!", "?")) else f"{text}."

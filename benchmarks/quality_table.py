"""From rows to the tables of the benchmark of quality: means, paired differences, time to quality, bars."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from .quality_cells import CELLS
from .quality_methods import RESTARTS, TUNING_SETS, Ours, first_reaching, ladder, raced_as
from .quality_rows import Row, select, tried, tuned_weight
from .registration_measures import interval

Line = dict[str, Any]
TIME_BAR, QUALITY_BAR, CONSENSUS_BAR, POOLED_BAR = 0.2, 4.5, 0.7, 18.0


def summarise(rows: list[Row], sets: tuple[int, ...], steps: int) -> dict[str, Any]:
    """All tables, from the rows of these photo sets."""
    rows = [row for row in rows if row["set"] in sets]
    cells = [name for name in CELLS if any(row["cell"] == name for row in rows)]
    tuning = sets[:TUNING_SETS]
    tables: dict[str, Any] = {
        "sets": list(sets),
        "steps": steps,
        "codes": sorted({row["code"] for row in rows if row["method"] == "ours"}),
        "peer_weights": {cell: tuned_weight(rows, cell, steps, tuning) for cell in cells},
        "peer_weights_tried": {cell: tried(rows, cell, steps, tuning) for cell in cells},
        "quality": [line for cell in cells for line in quality_lines(rows, cell, steps, tuning)],
        "time": [line for cell in cells for line in time_lines(rows, cell, steps, tuning)],
    }
    return tables | {"bars": bars(tables)}


def methods(rows: list[Row], cell: str, steps: int, tuning: tuple[int, ...]) -> dict[str, dict[int, Row]]:
    """The rows of each line of a cell's table, by photo set."""
    weight = tuned_weight(rows, cell, steps, tuning)
    found = {"constant image": select(rows, cell, "constant")}
    for restarts in (1, RESTARTS):
        name = f"peer, tuned, {restarts} x {steps}"
        found[name] = (
            {} if weight is None else select(rows, cell, "peer", steps=steps, weight=weight, restarts=restarts)
        )
    for peeling, after in ((True, ""), (False, ", no peeling")):
        for agents, own in ((1, steps), (RESTARTS, steps), (1, RESTARTS * steps)):
            name = f"ours, {agents} x {own}{after}"
            found[name] = select(rows, cell, "ours", **asdict(Ours(agents, own, peeling)))
    paper = Ours(RESTARTS, steps, False, "gradinversion_paper")
    found[f"gradinversion_paper, {RESTARTS} x {steps}"] = select(rows, cell, "ours", **asdict(paper))
    return {name: own for name, own in found.items() if own}


def quality_lines(rows: list[Row], cell: str, steps: int, tuning: tuple[int, ...]) -> list[Line]:
    """One line per method of a cell, with its difference to what it is compared with, on the same photo sets."""
    found = methods(rows, cell, steps, tuning)
    lines = []
    for name, own in found.items():
        line: Line = {"cell": cell, "method": name, "sets": len(own)}
        for key in ("psnr", "gradient_loss", "seconds", "labels"):
            values = [row[key] for row in own.values() if row.get(key) is not None]
            line[key] = float(np.mean(values)) if values else None
        line["peeled"] = bool(own) and all(row.get("peeled", False) for row in own.values())
        if name.startswith(("ours", "gradinversion")):
            compute = 1 if name.startswith(f"ours, 1 x {steps}") else RESTARTS
            line["over_peer"] = difference(own, found.get(f"peer, tuned, {compute} x {steps}", {}))
        if name.startswith(f"ours, {RESTARTS} x"):
            alone = name.replace(f"{RESTARTS} x {steps}", f"1 x {RESTARTS * steps}")
            line["over_one_agent"] = difference(own, found.get(alone, {}))
        lines.append(line)
    return lines


def difference(own: dict[int, Row], other: dict[int, Row]) -> Line | None:
    """In PSNR on the photo sets that both have: mean, 95 % bootstrap interval over sets, each value."""
    both = sorted(own.keys() & other.keys())
    if not both:
        return None
    values = [own[number]["psnr"] - other[number]["psnr"] for number in both]
    mean, low, high = interval(values, [float(number) for number in both], np.random.default_rng(0))
    return {"mean": mean, "low": low, "high": high, "median": float(np.median(values)), "values": values}


def time_lines(rows: list[Row], cell: str, steps: int, tuning: tuple[int, ...]) -> list[Line]:
    """For each photo set, the shortest run of one agent that has the PSNR of the peer's single run, and its cost."""
    weight = tuned_weight(rows, cell, steps, tuning)
    peers = {} if weight is None else select(rows, cell, "peer", steps=steps, weight=weight, restarts=1)
    lines = []
    for number, peer in peers.items():
        for peeling in (True, False):
            rungs = [number in select(rows, cell, "ours", **asdict(Ours(1, rung, peeling))) for rung in ladder(steps)]
            found = first_reaching(rows, cell, number, steps, peeling, peer["psnr"])
            if found is None and not all(rungs):
                continue
            line: Line = {"cell": cell, "set": number, "peeling": peeling, "psnr": peer["psnr"]}
            lines.append(line | cost(rows, found, peer, steps))
    return lines


def cost(rows: list[Row], found: Row | None, peer: Row, steps: int) -> Line:
    """Steps and seconds of a run that has the peer's quality, over the peer's; all None where no run has it."""
    if found is None:
        return {"steps": None, "seconds": None, "peer_seconds": None, "ratio": None, "in_turns": False}
    settings = asdict(raced_as(found)) | {"peer_steps": steps}
    raced = select(rows, found["cell"], "race", **settings).get(found["set"])
    if raced is None:
        ours, theirs = [found["seconds"]], [peer["seconds"]]
    else:
        ours, theirs = raced["ours_seconds"], raced["peer_seconds"]
    ratio = float(np.median([a / b for a, b in zip(ours, theirs, strict=True)]))
    return {
        "steps": found["settings"]["steps"],
        "seconds": float(np.median(ours)),
        "peer_seconds": float(np.median(theirs)),
        "ratio": ratio,
        "in_turns": raced is not None,
    }


def middle(ratios: list[float | None]) -> float | None:
    """The median, in which what was not reached is more than any ratio; None where the median itself is not reached."""
    value = float(np.median([math.inf if ratio is None else ratio for ratio in ratios]))
    return value if math.isfinite(value) else None


def bars(tables: dict[str, Any]) -> list[Line]:
    """Each bar, what was found, and whether it is met; a bar without rows is left out."""
    found: list[Line] = []

    def add(bar: str, value: float | None, met: bool, text: str) -> None:
        found.append({"bar": bar, "value": value, "met": bool(met), "found": text})

    usual = [line for line in tables["quality"] if not CELLS[line["cell"]].apart]
    times = [line for line in tables["time"] if not CELLS[line["cell"]].apart and line["peeling"]]
    if times:
        ratio = middle([line["ratio"] for line in times])
        short = sum(line["ratio"] is None for line in times)
        text = f"{'not reached' if ratio is None else f'{ratio:.2f}'} ({short} of {len(times)} not reached)"
        add(
            f"time to the tuned peer's quality <= {TIME_BAR} of the peer's",
            ratio,
            ratio is not None and ratio <= TIME_BAR,
            text,
        )
    four = f"ours, {RESTARTS} x {tables['steps']}"
    for bar, key, least, cells in (
        (f"PSNR at equal compute over the tuned peer >= +{QUALITY_BAR} dB (C4, C8)", "over_peer", QUALITY_BAR, "C4 C8"),
        (f"{RESTARTS} agents over one at equal compute >= +{CONSENSUS_BAR} dB", "over_one_agent", CONSENSUS_BAR, ""),
    ):
        own = [line for line in usual if line["method"] == four and (not cells or line["cell"] in cells.split())]
        values = [value for line in own if line.get(key) for value in line[key]["values"]]
        if values:
            value = float(np.median(values))
            add(bar, value, value >= least, f"{value:+.2f} dB, median of {len(values)}")
    pooled = [line for line in tables["quality"] if line["cell"] == "P4" and line["method"].startswith("ours")]
    if pooled:
        best = max(pooled, key=lambda line: line["psnr"])
        add(f"P4 >= {POOLED_BAR:.0f} dB", best["psnr"], best["psnr"] >= POOLED_BAR, f"{best['psnr']:.2f} dB")
    return found


def show(tables: dict[str, Any]) -> None:
    """Print the tables."""
    console = Console(width=150)
    for apart in (False, True):
        lines = [line for line in tables["quality"] if CELLS[line["cell"]].apart == apart]
        if lines:
            console.print(quality_table(lines, apart))
    if tables["time"]:
        console.print(time_table(tables["time"]))
    weights = ", ".join(f"{cell} {weight}" for cell, weight in tables["peer_weights"].items())
    console.print(f"The peer's weight of total variation, tuned per cell: {weights}")
    if len(tables["codes"]) > 1:
        console.print(f"Rows of ours are of {len(tables['codes'])} versions of the code: measure with --again.")
    for bar in tables["bars"]:
        console.print(f"{'met   ' if bar['met'] else 'MISSED'} {bar['bar']}: {bar['found']}")


def quality_table(lines: list[Line], apart: bool) -> Table:
    """Mean PSNR in dB over photo sets, and what it is over the others."""
    table = Table(title="Where everybody fails" if apart else "Quality: means over photo sets, PSNR in dB")
    for heading in ("cell", "method", "sets", "PSNR", "over the peer at this compute", "over one agent", "loss", "s"):
        table.add_column(heading, justify="left" if heading in ("cell", "method") else "right")
    cell = lines[0]["cell"]
    for line in lines:
        if line["cell"] != cell:
            table.add_section()
            cell = line["cell"]
        table.add_row(
            cell,
            line["method"],
            str(line["sets"]),
            f"{line['psnr']:.2f}",
            gain(line.get("over_peer")),
            gain(line.get("over_one_agent")),
            "" if line["gradient_loss"] is None else f"{line['gradient_loss']:.3f}",
            "" if line["seconds"] is None else f"{line['seconds']:.1f}",
        )
    return table


def gain(found: Line | None) -> str:
    """A difference with its interval."""
    return "" if found is None else f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def time_table(lines: list[Line]) -> Table:
    """Medians over photo sets; seconds are of processor time."""
    table = Table(title="Time to the quality of the peer's run: medians over photo sets")
    for heading in ("cell", "peeling", "sets", "reached in", "steps", "s", "peer's s", "ratio", "in turns"):
        table.add_column(heading, justify="left" if heading in ("cell", "peeling") else "right")
    for cell, peeling in dict.fromkeys((line["cell"], line["peeling"]) for line in lines):
        own = [line for line in lines if (line["cell"], line["peeling"]) == (cell, peeling)]
        reached = [line for line in own if line["ratio"] is not None]
        columns = {"steps": 0, "seconds": 1, "peer_seconds": 1, "ratio": 2}
        values = {key: middle([line[key] for line in own]) for key in columns}
        shown = ["not reached" if value is None else f"{value:.{columns[key]}f}" for key, value in values.items()]
        turns = sum(line["in_turns"] for line in own)
        table.add_row(cell, "yes" if peeling else "no", str(len(own)), str(len(reached)), *shown, str(turns))
    return table

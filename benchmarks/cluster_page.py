"""The tables of docs/scale.md, written from the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
_Results = dict[str, Any]


def write_page(results: _Results, page: Path = PAGE) -> None:
    """Replace the tables between the marks ``<!-- PART -->`` and ``<!-- /PART -->`` of the page."""
    text = page.read_text(encoding="utf-8")
    for part, write in _TABLES.items():
        if part in results:
            begin, end = f"<!-- {part} -->", f"<!-- /{part} -->"
            before, _, rest = text.partition(begin)
            _, _, after = rest.partition(end)
            text = f"{before}{begin}\n{write(results[part])}\n{_machine(results[part])}\n{end}{after}"
    page.write_text(text, encoding="utf-8")


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def _machine(part: _Results) -> str:
    machine = part["machine"]
    return (
        f"Measured {machine['when']} on {machine['cpus']} CPUs, {machine['memory_gib']:g} GiB, Ray {machine['ray']}, "
        f"torch {machine['torch']}."
    )


def _checkpoints(part: _Results) -> str:
    runs = [run["stepping_seconds"] for kind in ("without", "with") for run in part["runs"][kind]]
    rows: list[Sequence[object]] = [
        ("run without `out`, first step to last", f"{part['stepping_seconds']['without']:.2f} s"),
        ("the same with `out`", f"{part['stepping_seconds']['with']:.2f} s"),
        ("**checkpoints and all that belongs to them**", f"**{part['overhead']:.2%}**"),
        ("least and most of all runs", f"{min(runs):.2f} s, {max(runs):.2f} s"),
        ("once, at the end: last state and result", f"{part['once_at_the_end_seconds']:.1f} s"),
    ]
    rows += [
        (name, f"{1000 * cost['wall']:.0f} ms, {1000 * cost['processor']:.0f} ms of a processor")
        for name, cost in part["parts"].items()
    ]
    loads = sorted(run["load"] for kind in part["runs"].values() for run in kind)
    rows.append(("load of the machine", f"{loads[0]} to {loads[-1]}"))
    return _table(
        (f"{part['agents']} agents, {part['rounds']} rounds of 20 s, {part['state_mb']:.0f} MB a state", ""), rows
    )


def _coordination(part: _Results) -> str:
    return _table(
        (
            "mode",
            "registration",
            "agents compute",
            "all slow steps counted",
            "and without two rounds of warming up",
            "memory of an agent",
            "of the coordinator",
            "load",
        ),
        [
            (
                run["mode"],
                run["registration"],
                f"**{run['computing']:.1%}**",
                f"{run['computing_all_steps']:.1%}",
                f"{run['computing_all_steps_later']:.1%}",
                f"{run['agent_mb']} MB",
                f"{run['coordinator_mb']} MB",
                run["load"],
            )
            for run in part["runs"]
        ],
    )


def _recovery(part: _Results) -> str:
    rows = []
    for fault in ("killed process", "killed node"):
        found = part[fault]
        median = found["median"]
        rows.append(
            (
                fault,
                len(found["runs"]),
                f"{max(0.0, median['process']):.1f} s",
                f"{median['target']:.1f} s",
                f"**{median['step']:.1f} s**",
                f"{found['worst']:.1f} s",
                found["load"],
            )
        )
    head = ("fault", "times", "process begins", "has its target", "**next step**", "worst", "load")
    imports = f"Importing the agent's code in a fresh process took {part['import_seconds']:.1f} s.\n"
    return _table(head, rows) + "\n" + imports


def _scale(part: _Results) -> str:
    return (
        f"Measured, a round with batches of {part['batch_mb']:.2f} MB:\n\n{_simulated(part['measured'])}\n"
        f"On paper, batches of 28.9 MB:\n\n{_paper(part['paper'])}\n"
        f"The same candidates, whole in one process and in parts over Ray tasks:\n\n{_sharding(part['sharding'])}"
    )


def _simulated(rows: list[_Results]) -> str:
    return _table(
        ("agents", "parts", "processor of the coordinator", "consensus", "images through it", "messages", "load"),
        [
            (
                row["agents"],
                row["parts"],
                f"{row['processor_seconds']:.2f} s",
                f"{row['consensus_seconds']:.2f} s",
                f"{row['images_mb']:.0f} MB",
                f"{row['messages_mb']:.2f} MB",
                row["load"],
            )
            for row in rows
        ],
    )


def _paper(rows: list[_Results]) -> str:
    return _table(
        ("agents", "parts", "through the coordinator", "its memory", "its link", "into each worker", "registration"),
        [
            (
                row["agents"],
                row["parts"],
                f"{row['coordinator_mb']:,.0f} MB",
                f"{row['coordinator_memory_mb']:,.0f} MB",
                f"{row['link_seconds_at_10_gbit']:.2f} s",
                f"{row['worker_mb']:,.0f} MB" if row["parts"] > 1 else "",
                f"{row['registration_seconds_one_core_each']:.1f} s",
            )
            for row in rows
        ],
    )


def _sharding(rows: list[_Results]) -> str:
    return _table(
        ("registration", "seeds", "candidates", "whole", "in parts", "load"),
        [
            (
                row["method"],
                row["seeds"],
                f"{row['mb']:.0f} MB",
                f"{row['whole_seconds']:.2f} s",
                f"{row['parts_seconds']:.2f} s",
                row["load"],
            )
            for row in rows
        ],
    )


def _growth(part: _Results) -> str:
    return _table(
        ("Ray", "rounds", "coordinator", "GCS", "an agent", "at the end (coordinator, GCS)", "load"),
        [
            (
                name,
                f"{run['rounds']:,}",
                *(f"{run['mb_per_1000_rounds'][process]:+.1f} MB" for process in ("coordinator", "gcs", "agent")),
                f"{run['mb_at_the_end']['coordinator']:.0f} MB, {run['mb_at_the_end']['gcs']:.0f} MB",
                run["load"],
            )
            for name, run in part.items()
            if name != "machine"
        ],
    )


_TABLES: dict[str, Callable[[_Results], str]] = {
    "checkpoints": _checkpoints,
    "coordination": _coordination,
    "recovery": _recovery,
    "scale": _scale,
    "growth": _growth,
}

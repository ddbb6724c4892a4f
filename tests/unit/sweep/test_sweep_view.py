"""What a person sees of a running audit."""

from __future__ import annotations

import io
from typing import Any

from gradinversion.sweep.cell import Progress
from gradinversion.sweep.results import CellResult, State
from gradinversion.sweep.view import GridView
from rich.console import Console

TITLES = {f"cell-{index}": f"batch {index}, no defence" for index in range(8)}


def console(terminal: bool, height: int = 40) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    made = Console(file=text, force_terminal=terminal, width=120, height=height, color_system=None, _environ={})
    return made, text


def shown(view: GridView) -> str:
    other, text = console(terminal=False)
    other.print(view.screen())
    return text.getvalue()


def test_each_cell_has_its_row(fakes: Any) -> None:
    view = GridView(console(terminal=True)[0], TITLES)
    view.ended("cell-0", fakes.done(3))
    view.ended("cell-1", CellResult(State.FAILED, "no images"))
    view.look({"cell-2": Progress("control: one agent", 120, 400), "cell-3": None})
    lines = {line.split("  ")[0]: line.split() for line in shown(view).splitlines()}
    assert "2 running, 1 failed, 1 done, 4 waiting" in shown(view)
    assert {"done", "24.5", "15.2", "3/4", "75%"} <= set(lines["batch 0, no defence"])
    assert "failed" in lines["batch 1, no defence"]
    assert "120/400" in lines["batch 2, no defence"]
    assert "waiting" in lines["batch 7, no defence"]


def test_a_low_terminal_shows_the_running_cells(fakes: Any) -> None:
    view = GridView(console(terminal=True, height=10)[0], TITLES)
    for index in range(6):
        view.ended(f"cell-{index}", fakes.done(0))
    view.look({"cell-7": Progress("attack", 1, 2)})
    text = shown(view)
    assert "batch 7" in text
    assert "and 4 more cells" in text


def test_elsewhere_each_finished_cell_is_one_line(fakes: Any) -> None:
    made, text = console(terminal=False)
    with GridView(made, TITLES) as view:
        view.look({"cell-0": Progress("attack", 1, 2)})
        view.ended("cell-0", fakes.done(3))
        view.ended("cell-1", CellResult(State.FAILED, "[bold]no images[/bold]"))
    numbers = "PSNR 24.5 dB (floor 15.2 dB), SSIM 0.71, 75% recognised, 12 s"
    assert text.getvalue().splitlines() == [
        f"[1/8] batch 0, no defence: 3 of 4 images leaked, {numbers}",
        "[2/8] batch 1, no defence: failed: [bold]no images[/bold]",
    ]


def test_the_whole_table_is_left_behind(fakes: Any) -> None:
    made, text = console(terminal=True)
    with GridView(made, TITLES) as view:
        for name in TITLES:
            view.ended(name, fakes.done(1))
    screen, erased, left = text.getvalue().rpartition("\x1b[2K")
    assert "8 done" in screen
    assert erased
    assert left.count("1/4") == len(TITLES)


def test_what_runs_is_told_while_no_cell_ends() -> None:
    view = GridView(console(terminal=False)[0], TITLES)
    assert view._alive() == "audit, 0:00:00, 0/8 ended; planning"
    view.look({"cell-0": Progress("attack", 12, 300), "cell-1": None, "measure 8": Progress("client")})
    running = "batch 0, no defence: attack, step 12 of 300; batch 1, no defence: beginning; measure 8: client"
    assert view._alive() == f"audit, 0:00:00, 0/8 ended; {running}"

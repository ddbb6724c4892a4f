"""The paper's ablation: its rows are the presets, and its page shows every line, also one that failed."""

from __future__ import annotations

from pathlib import Path

import torch
from gradinversion.settings.run import load_config

from benchmarks.paper_cells import METHODS, QUICK, ROWS, base_config
from benchmarks.paper_page import strip, write_page


def test_each_row_is_its_preset_with_the_seeds_and_steps_of_the_base() -> None:
    for name in ("gradient", "fidelity", "group", "registered"):
        found, preset = METHODS[name].config(base_config(2, 30)), load_config([f"preset=ablation_{name}"])
        assert found.objective == preset.objective
        assert found.registration == preset.registration
        assert (found.agents.count, found.agents.iterations) == (2, 30)
        assert not found.peeling.enabled
    assert METHODS["default"].config(base_config(1, 30)).peeling.enabled
    assert METHODS["no gradient"].config(base_config(1, 30)).objective.gradient_weight == 0


def test_quick_cells_are_among_the_rows() -> None:
    assert set(QUICK) <= ROWS.keys()


def test_the_page_shows_each_line(tmp_path: Path) -> None:
    strip(torch.rand(2, 3, 8, 8)).save(tmp_path / "one.png")
    head = {"network": "N<1>", "size": 8, "batch": 2, "set": 0}
    lines = [
        head | {"words": "gradient only", "psnr": 12.345, "iip": 0.5, "picture": "one.png"},
        head | {"words": "default", "problem": "MemoryError: none left"},
    ]
    write_page(lines, tmp_path, tmp_path / "page.html", "words above")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<h2>") == 1
    assert "N&lt;1&gt;, 8 px, 2 images, photo set 0" in page
    assert "12.3" in page
    assert "50%" in page
    assert page.count("data:image/png;base64,") == 1
    assert "default: MemoryError: none left" in page

"""The page of a grid on paper and on a narrow screen, in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gradinversion.sweep.facts import AuditFacts
from gradinversion.sweep.page import render
from gradinversion.sweep.verdict import judge_grid

GRID = (
    "sweep.batch_sizes=1,8",
    "sweep.defences=none,noise:0.1,prune:0.9,quantise:8",
    "sweep.bn=eval,train_private",
)


@pytest.fixture
def page(facts: Callable[..., AuditFacts]) -> str:
    """Of a large grid: 16 cells, all axes."""
    found = facts(*GRID)
    return render(found, judge_grid(found.grid, found.results, found.prices), {"gradinversion": "0.1", "date": "now"})


@pytest.mark.parametrize("paper", ["A4", "letter"])
def test_the_page_of_a_grid_prints_whole(page: str, browser: Any, paper: str) -> None:
    text = browser.printed(page, paper)
    for words in ("train_private", "prune:0.9", "quantise:8", "no gradient"):
        assert words.replace(" ", "").lower() in text.lower(), words


@pytest.mark.parametrize("width", [320, 640])
def test_no_screen_is_too_narrow_for_a_grid(page: str, browser: Any, width: int) -> None:
    assert browser.width(page, width) <= width

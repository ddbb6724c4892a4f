"""The page on paper and on a narrow screen, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gradinversion.audit import Control, evaluate, write_report
from gradinversion.capture import PrivateBatch
from gradinversion.coordinator import Reconstruction

Attack = Callable[..., tuple[Reconstruction, PrivateBatch]]


@pytest.fixture(scope="module")
def pages(attack: Attack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With as many columns as there can be: eight agents, controls, many images."""
    out = tmp_path_factory.mktemp("printed")
    reconstruction, private = attack(batch=14, seeds=8)
    controls = tuple(Control(name, reconstruction) for name in ("no_gradient", "other_images", "one_agent"))
    report = evaluate(reconstruction, private, controls=controls)
    again = "gradinversion " + "client.images=folder " * 9
    write_report(report, reconstruction, private, out, controls, again=again, redact=True)
    return out


@pytest.mark.parametrize("paper", ["A4", "letter"])
def test_the_page_prints_whole(pages: Path, browser: Any, paper: str) -> None:
    text = browser.printed((pages / "report.html").read_text(), paper)
    # The columns that were cut: the last one of the pictures, and the verdicts.
    for words in ("reconstruction", "consensus", "verdict", "seed 7", "agreement", "FFT2D", "no gradient", "no leak"):
        assert words.replace(" ", "") in text, words
    assert len(re.findall("image14|14·", text)) >= 2  # what is folded away on a screen is printed too
    assert "Resolvedconfiguration" in text
    assert "\\n" not in text


def test_the_page_for_others_prints_whole(pages: Path, browser: Any) -> None:
    text = browser.printed((pages / "report-redacted.html").read_text(), "letter")
    for words in ("verdict", "image 14", "agreement", "no leak", "Resolved configuration"):
        assert words.replace(" ", "") in text, words


@pytest.mark.parametrize("width", [320, 390, 640, 1280])
def test_no_screen_is_too_narrow(pages: Path, browser: Any, width: int) -> None:
    assert browser.width((pages / "report.html").read_text(), width) <= width

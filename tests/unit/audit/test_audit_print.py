"""The page on paper and on a narrow screen, in a real browser."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gradinversion.audit import Control, evaluate, write_report
from gradinversion.capture import PrivateBatch
from gradinversion.coordinator import Reconstruction

Attack = Callable[..., tuple[Reconstruction, PrivateBatch]]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PAPERS = {"A4": (595, 842), "letter": (612, 792)}


def browse(*arguments: str) -> str:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    done = subprocess.run([browser, *quiet, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def page(attack: Attack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With as many columns as there can be: eight agents, controls, many images."""
    out = tmp_path_factory.mktemp("printed")
    reconstruction, private = attack(batch=14, seeds=8)
    controls = tuple(Control(name, reconstruction) for name in ("no_gradient", "other_images", "one_agent"))
    report = evaluate(reconstruction, private, controls=controls)
    write_report(report, reconstruction, private, out, controls, again="gradinversion " + "client.images=folder " * 9)
    return out / "report.html"


@pytest.mark.parametrize("paper", PAPERS)
def test_the_page_prints_whole(page: Path, tmp_path: Path, paper: str) -> None:
    pypdf = pytest.importorskip("pypdf")
    sized = tmp_path / "page.html"
    sized.write_text(page.read_text().replace("@page { margin", f"@page {{ size: {paper}; margin"))
    browse("--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}", sized.as_uri())
    found: list[tuple[int, float, float, str]] = []
    reader = pypdf.PdfReader(tmp_path / "page.pdf")
    for number, sheet in enumerate(reader.pages):
        assert [round(float(sheet.mediabox.width)), round(float(sheet.mediabox.height))] == pytest.approx(
            PAPERS[paper], abs=1
        )

        def take(text: str, cm: Any, tm: Any, font: Any, size: Any, number: int = number) -> None:
            if text.strip():
                x = tm[4] * cm[0] + tm[5] * cm[2] + cm[4]
                y = tm[4] * cm[1] + tm[5] * cm[3] + cm[5]
                found.append((number, x, y, text.strip()))

        sheet.extract_text(visitor_text=take)
    width, height = PAPERS[paper]
    assert [entry for entry in found if not (0 < entry[1] < width - 15 and 0 < entry[2] < height)] == []
    text = unicodedata.normalize("NFKC", re.sub(r"\s+", "", "".join(entry[3] for entry in found)))  # no ligatures
    # The columns that were cut: the last one of the pictures, and the verdicts.
    for words in ("reconstruction", "consensus", "verdict", "seed 7", "agreement", "FFT2D", "no gradient", "no leak"):
        assert words.replace(" ", "") in text, words
    assert len(re.findall("image14|14·", text)) >= 2  # what is folded away on a screen is printed too
    assert "Resolvedconfiguration" in text
    assert "\\n" not in text


@pytest.mark.parametrize("width", [320, 390, 640, 1280])
def test_no_screen_is_too_narrow(page: Path, tmp_path: Path, width: int) -> None:
    inner = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", page.read_text())
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<!doctype html><body><iframe id=f style='border:0;width:{width}px;height:900px' "
        f'srcdoc="{html.escape(inner)}"></iframe><script>addEventListener("load", () => document.title = '
        "'found ' + document.getElementById('f').contentDocument.documentElement.scrollWidth)</script>"
    )
    found = re.search(r"<title>found (\d+)</title>", browse("--dump-dom", frame.as_uri()))
    assert found is not None
    assert int(found[1]) <= width

"""A real browser, for pages on paper and on narrow screens; tests that need one are skipped where there is none."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PAPERS = {"A4": (595, 842), "letter": (612, 792)}


class Browser:
    """Prints and measures pages.

    Args:
        program: Of Chromium.
        folder: For what it is given and makes.
    """

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._folder = program, folder

    def printed(self, page: str, paper: str) -> str:
        """The text of a page on paper, without spaces and ligatures; none of it may lie beside the sheet."""
        pypdf = pytest.importorskip("pypdf")
        sized, made = self._folder / "page.html", self._folder / "page.pdf"
        sized.write_text(page.replace("@page { margin", f"@page {{ size: {paper}; margin"))
        self._browse("--no-pdf-header-footer", f"--print-to-pdf={made}", sized.as_uri())
        found: list[tuple[int, float, float, str]] = []
        width, height = PAPERS[paper]
        for number, sheet in enumerate(pypdf.PdfReader(made).pages):
            size = [round(float(sheet.mediabox.width)), round(float(sheet.mediabox.height))]
            assert size == pytest.approx([width, height], abs=1)

            def take(text: str, cm: Any, tm: Any, font: Any, size: Any, number: int = number) -> None:
                if text.strip():
                    x = tm[4] * cm[0] + tm[5] * cm[2] + cm[4]
                    y = tm[4] * cm[1] + tm[5] * cm[3] + cm[5]
                    found.append((number, x, y, text.strip()))

            sheet.extract_text(visitor_text=take)
        assert [entry for entry in found if not (0 < entry[1] < width - 15 and 0 < entry[2] < height)] == []
        return unicodedata.normalize("NFKC", re.sub(r"\s+", "", "".join(entry[3] for entry in found)))

    def width(self, page: str, screen: int) -> int:
        """Pixels that a page takes on a screen so wide."""
        inner = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", page)
        frame = self._folder / "frame.html"
        frame.write_text(
            f"<!doctype html><body><iframe id=f style='border:0;width:{screen}px;height:900px' "
            f'srcdoc="{html.escape(inner)}"></iframe><script>addEventListener("load", () => document.title = '
            "'found ' + document.getElementById('f').contentDocument.documentElement.scrollWidth)</script>"
        )
        found = re.search(r"<title>found (\d+)</title>", self._browse("--dump-dom", frame.as_uri()))
        assert found is not None
        return int(found[1])

    def _browse(self, *arguments: str) -> str:
        quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        done = subprocess.run([self._program, *quiet, *arguments], capture_output=True, text=True, check=True)
        return done.stdout


@pytest.fixture(scope="session", autouse=True)
def _no_process_that_forks() -> Iterator[None]:
    """Whoever calls the command or the attack within a test has workers as Ray makes them, if any."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADINVERSION_FORK_SERVER", "off")
        yield


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    """The browser of this machine."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    return Browser(program, tmp_path)

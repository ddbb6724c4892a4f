"""The documentation against the program: its links, its commands, its examples."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradinversion.command.words import split_verb
from gradinversion.settings.run import load_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> Iterator[str]:
    for kind, text in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == language:
            yield text


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and the site make them, and those that are set by hand."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    named = set(re.findall(r'<a id="([^"]+)">', text))
    return named | {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if target.name == "notebook.md":  # the site makes it
        return target.with_suffix(".ipynb").exists()
    return target.exists() and (not anchor or target.suffix != ".md" or anchor in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    links = _LINK.findall(_BLOCK.sub("", page.read_text(encoding="utf-8")))
    assert [link for link in links if not re.match(r"[a-z]+:", link) and not leads_somewhere(page, link)] == []


def commands(page: Path) -> Iterator[list[str]]:
    for text in [*blocks(page, "sh"), *blocks(page, "")]:
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for program in (["gradinversion"], ["python", "run.py"]):
                if words[: len(program)] == program and "--help" not in words:
                    yield words[len(program) :]


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))], ids=name_of)
def test_every_command_on_a_page_can_be_typed(page: Path) -> None:
    for words in commands(page):
        _, settings = split_verb(words)
        load_config([word.replace("…", "x") for word in settings])


def test_every_page_has_its_place_on_the_site() -> None:
    nav = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    made = {"benchmarks.md", "changelog.md", "contributing.md", "notebook.md", "readme.md"} | {"security.md"}
    assert set(nav) == {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")} | made
    assert len(nav) == len(set(nav))


@pytest.mark.parametrize("page", ["tutorial.md", "how-to/researcher.md"])
def test_what_a_page_has_for_python_runs_as_it_stands(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for code in blocks(ROOT / "docs" / page, "python"):
        exec(compile(code.replace("iterations=50", "iterations=4"), page, "exec"), {})


def test_the_network_of_the_tutorial_can_be_attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradinversion.capture import ClientConfig, simulate_client

    monkeypatch.chdir(tmp_path)
    code, _ = blocks(ROOT / "docs" / "tutorial.md", "python")
    (tmp_path / "my_net.py").write_text(code)
    settings = ClientConfig(model="my_net:build", image_size=32, batch_size=2)
    monkeypatch.syspath_prepend(str(tmp_path))
    update, _, _ = simulate_client(settings, 0)
    assert update.image_shape == (3, 32, 32)
    sys.modules.pop("my_net", None)


@pytest.fixture
def notebook() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
    return found


def runner() -> Any:
    """What runs a notebook; the site's folder is no package."""
    spec = importlib.util.spec_from_file_location("notebook_of_the_site", ROOT / "docs" / "site" / "notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_notebook_runs_without_ray_and_finds_the_images(notebook: dict[str, Any]) -> None:
    import ray

    done = runner().execute(notebook, {"iterations=300": "iterations=10"})
    assert not ray.is_initialized()
    shown = json.dumps(done, ensure_ascii=False)
    assert "All 2 images leaked" in shown
    assert "image/png" in shown


def test_the_notebook_shows_what_its_cells_gave(notebook: dict[str, Any]) -> None:
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in cells)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))


def test_the_page_of_the_worked_audit_looks_and_prints_as_pages_do_now() -> None:
    page = (ROOT / "docs" / "audit-example" / "audit.html").read_text(encoding="utf-8")
    styles = ("audit/report.css", "sweep/audit.css", "audit/print.css")
    style = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in styles)
    # Where this fails: put the style in, and look whether its tables and headings still have these classes.
    assert page.partition("<style>")[2].partition("</style>")[0] == style

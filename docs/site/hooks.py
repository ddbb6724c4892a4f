"""What MkDocs is told beside its settings: pages that lie elsewhere in the checkout or are made of something else.

Links of the pages are as they are in the checkout, so that they lead somewhere where the files are read there, too.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
# Pages of the root, by the name that they have on the site.
ROOT_PAGES = {
    f"{name}.md": f"{name.lower()}.md" for name in ("BENCHMARKS", "CHANGELOG", "CONTRIBUTING", "README", "SECURITY")
}
SCHEMAS = {"report": "audit/report.schema.json", "metrics": "coordinator/metrics.schema.json"}
NOT_SHIPPED = {"benchmarks", "build", "docs", "tests"}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
_SCHEMA = re.compile(r"^\{schema:(\w+)\}$", re.MULTILINE)


def on_startup(command: str, dirty: bool) -> None:
    """Gives the API reference the package under its name, without what lies beside it in the checkout."""
    package = ROOT / "build" / "reference" / "gradinversion"
    package.mkdir(parents=True, exist_ok=True)
    for old in package.iterdir():
        old.unlink()
    for path in [*ROOT.glob("*.py"), *(init.parent for init in ROOT.glob("*/__init__.py"))]:
        if path.name not in NOT_SHIPPED:
            (package / path.name).symlink_to(path)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the root, the notebook and the schemas."""
    for source, name in ROOT_PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    notebook = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
    files.append(File.generated(config, "notebook.md", content=notebook_page(notebook)))
    for path in SCHEMAS.values():
        name = Path(path).name
        files.append(File.generated(config, f"schemas/{name}", content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to where their pages are on the site, and fills in tables of schemas."""
    here = next((source for source, name in ROOT_PAGES.items() if name == page.file.src_uri), None)
    source = here if here is not None else f"docs/{page.file.src_uri}"
    found = _LINK.sub(lambda link: _led(link, source, page.file.src_uri), markdown)
    return _SCHEMA.sub(lambda mark: schema_table(ROOT / SCHEMAS[mark[1]]), found)


def _led(link: re.Match[str], source: str, name: str) -> str:
    picture, text, path, anchor = link[1], link[2], link[3], link[4] or ""
    if not path or ":" in path:
        return link[0]
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if target.startswith("docs/"):
        place = target.removeprefix("docs/").replace(".ipynb", ".md")
    elif target in ROOT_PAGES:
        place = ROOT_PAGES[target]
    elif (ROOT / target).exists():
        return text  # a file of the code, which has no page
    else:
        return link[0]  # leads nowhere: MkDocs says so
    return f"{picture}[{text}]({posixpath.relpath(place, posixpath.dirname(name) or '.')}{anchor})"


def schema_table(path: Path) -> str:
    """The keys of a JSON schema as a table."""
    schema = json.loads(path.read_text(encoding="utf-8"))
    rows = ["| key | type | meaning |", "|---|---|---|"]
    for key, value in schema["properties"].items():
        rows.append(f"| `{key}` | {_type(value)} | {value.get('description', '')} |")
    return "\n".join(rows)


def _type(value: dict[str, Any]) -> str:
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    kinds = value["type"] if isinstance(value["type"], list) else [value["type"]]
    return " or ".join("list" if kind == "array" else kind for kind in kinds)


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook as a page: its text, its code, and what each cell printed or showed."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![What the cell shows](data:image/png;base64,{''.join(data['image/png']).strip()})")
            else:
                parts.append("```text\n" + "".join(output.get("text", data.get("text/plain", []))).rstrip() + "\n```")
    return "\n\n".join(parts) + "\n"

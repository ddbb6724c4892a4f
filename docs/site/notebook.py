"""Runs the notebook's cells in one process, without Jupyter, and keeps what they print and show.

python docs/site/notebook.py docs/notebook.ipynb            # runs it, and writes the new outputs into it
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


def execute(notebook: dict[str, Any], replaced: dict[str, str] | None = None) -> dict[str, Any]:
    """The notebook with the outputs of this run.

    Args:
        notebook: As its file holds it.
        replaced: Texts in the code that stand for others, such as a number of steps for a smaller one.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for count, cell in enumerate((c for c in notebook["cells"] if c["cell_type"] == "code"), 1):
        code = "".join(cell["source"])
        for old, new in (replaced or {}).items():
            code = code.replace(old, new)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = _run(code, names)
        cell["execution_count"], cell["outputs"] = count, []
        if text := printed.getvalue():
            cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": text.splitlines(True)})
        if value is not None:
            result = {"output_type": "execute_result", "execution_count": count, "metadata": {}}
            cell["outputs"].append(result | {"data": _shown(value)})
    return notebook


def _run(code: str, names: dict[str, Any]) -> Any:
    """Runs a cell; the value of its last line where that is an expression, as a notebook shows it."""
    body = ast.parse(code).body
    last = body[-1] if body else None
    if not isinstance(last, ast.Expr):
        exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
        return None
    exec(compile(ast.Module(body[:-1], []), "<cell>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


def _shown(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"text/plain": repr(value).splitlines(True)}
    if hasattr(value, "_repr_png_"):
        found["image/png"] = base64.b64encode(value._repr_png_()).decode()
    return found


if __name__ == "__main__":
    path = Path(sys.argv[1])
    done = execute(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

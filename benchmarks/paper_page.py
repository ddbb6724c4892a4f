"""The page of `paper`: a table, and what each method shows of every image."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from PIL import Image
from torch import Tensor

_SHOWN = 96
COLUMNS = ("psnr", "ssim", "fft2d", "perceptual", "iip", "labels", "seconds")
HEADINGS = ("PSNR, dB", "SSIM", "FFT2D", "perceptual", "IIP", "labels", "s")
_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>The paper's ablation on trained networks</title>
<style>
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1100px;padding:0 1rem;color:#1a1d21;background:#fff}
img{max-width:100%;display:block;image-rendering:pixelated} .scroll{overflow-x:auto} p{max-width:75ch}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:3px 10px;text-align:right;border-bottom:1px solid #d8dce0} th:first-child,td:first-child{text-align:left}
</style></head><body><h1>The paper's ablation on trained networks</h1><p>{{ words }}</p>
{% for cell in cells %}<h2>{{ cell.title }}</h2><div class="scroll"><table><tr><th>method</th>
{% for heading in headings %}<th>{{ heading }}</th>{% endfor %}<th>images</th></tr>
{% for line in cell.lines %}<tr><td>{{ line.words }}{% if line.problem %}: {{ line.problem }}{% endif %}</td>
{% for value in line.figures %}<td>{{ value }}</td>{% endfor %}<td>{% if line.png %}
<img src="data:image/png;base64,{{ line.png }}" alt="{{ line.words }}, {{ cell.title }}">{% endif %}</td></tr>
{% endfor %}
</table></div>{% endfor %}</body></html>
"""


def strip(images: Tensor) -> Image.Image:
    """Images in [0, 1] side by side."""
    rows = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    parts = [Image.fromarray(row).resize((_SHOWN, _SHOWN), Image.Resampling.NEAREST) for row in rows[:8]]
    return Image.fromarray(np.concatenate([np.asarray(part) for part in parts], axis=1))


def number(line: dict[str, Any], name: str) -> str:
    """A figure of a line, or a dash."""
    value = line.get(name)
    if value is None:
        return "–"
    return f"{value:.0%}" if name in ("iip", "labels") else f"{value:.0f}" if name == "seconds" else f"{value:.3g}"


def write_page(lines: Sequence[dict[str, Any]], pictures: Path, path: Path, words: str) -> None:
    """Write the page.

    Args:
        lines: Of the table.
        pictures: Folder of a strip of images for each line, by its ``picture``.
        path: Of the page.
        words: What is to be said above.
    """
    cells: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        shown = pictures / line["picture"] if line.get("picture") else None
        png = ""
        if shown is not None and shown.exists():
            buffer = io.BytesIO()
            Image.open(shown).save(buffer, "PNG")
            png = base64.b64encode(buffer.getvalue()).decode()
        told = {"words": line["words"], "problem": line.get("problem", ""), "png": png}
        title = f"{line['network']}, {line['size']} px, {line['batch']} images, photo set {line['set']}"
        cells.setdefault(title, []).append(told | {"figures": [number(line, name) for name in COLUMNS]})
    told_cells = [{"title": title, "lines": own} for title, own in cells.items()]
    template = Environment(autoescape=True).from_string(_TEMPLATE)
    path.write_text(template.render(cells=told_cells, headings=HEADINGS, words=words))

"""A self-contained page of what registration does: panels before and after, flow fields, and the table."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import torch
from gradinversion.registration import flow_picture
from gradinversion.registration.warp import base_grid, to_pixels
from jinja2 import Environment
from PIL import Image
from torch import Tensor

from .registration_measures import Method, endpoint_errors, quality
from .registration_scenes import PHOTOS, SEVERITIES, Trial, make_trial

SHOWN = ((224, 0.05, 1, 0), (224, 0.08, 1, 1), (224, 0.05, 2, 3), (224, 0.05, 3, 4), (64, 0.05, 1, 0), (32, 0.05, 1, 1))
"""Size, jitter, severity and photo of each row of panels."""
_CANDIDATE = 1  # the one whose warp is shown

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Registration: before and after</title>
<style>
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1200px;padding:0 1rem;color:#1a1d21;background:#fff}
h1{font-size:1.6rem;margin:0 0 .3rem} h2{font-size:1.1rem;margin:2rem 0 .5rem} p{max-width:75ch;color:#454b52}
.row{display:grid;grid-template-columns:repeat(auto-fill,minmax(128px,1fr));gap:10px}
figure{margin:0} img{width:100%;display:block;border-radius:4px;border:1px solid #d8dce0;image-rendering:pixelated}
figcaption{font-size:12px;line-height:1.35;margin-top:4px;color:#454b52} figcaption b{color:#1a1d21;display:block}
.scroll{overflow-x:auto} table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:3px 10px;text-align:right;border-bottom:1px solid #e4e7ea} th:nth-child(-n+2),td:nth-child(-n+2)
{text-align:left} .ours td{font-weight:600} .missed{color:#b3261e} .met{color:#1b6e3c}
@media (prefers-color-scheme:dark){body{background:#14171a;color:#e8eaed} p,figcaption{color:#a9b0b8}
figcaption b{color:#e8eaed} img{border-color:#333a41} th,td{border-color:#2c3238}
.missed{color:#ff8a80} .met{color:#7bd88f}}
</style></head><body>
<h1>Registration: before and after</h1>
<p>Eight candidates of a photo are warped by known homographies and elastic displacement, then degraded. The panels show
one of them, the plain mean, the consensus after registration, and the errors of both (black: none; white: half the
range). In flow fields the hue is the direction and the saturation the length of the displacement; white stays where it
is. True and estimated flow of a row share one scale.</p>
{% for row in rows %}<h2>{{ row.title }}</h2><div class="row">{% for panel in row.panels %}
<figure><img src="data:image/png;base64,{{ panel.png }}" alt="{{ panel.name }}: {{ panel.note }}">
<figcaption><b>{{ panel.name }}</b>{{ panel.note }}</figcaption></figure>{% endfor %}</div>
{% endfor %}
{% if bars %}<h2>Bars</h2><div class="scroll"><table><tr><th>bar</th><th>found</th><th>met</th></tr>
{% for bar in bars %}<tr><td>{{ bar.bar }}</td><td>{{ bar.found }}</td>
<td class="{{ 'met' if bar.met else 'missed' }}">{{ 'yes' if bar.met else 'no' }}</td></tr>{% endfor %}
</table></div>{% endif %}
{% if lines %}<h2>All cells</h2><p>Gain is in PSNR over the plain mean of the same trial, with its 95 % bootstrap
interval over photos; error is the end-point error as a share of that without a warp.</p>
<div class="scroll"><table><tr><th>cell</th><th>method</th><th>trials</th><th>error px</th><th>error share</th>
<th>failures</th><th>PSNR</th><th>gain dB</th><th>interval</th><th>worst</th><th>SSIM</th><th>ms</th></tr>
{% for line in lines %}<tr class="{{ 'ours' if line.method == 'ours wiener' }}">
<td>{{ line.size }} px, {{ (100 * line.jitter) | round | int }} %, severity {{ line.severity }}</td>
<td>{{ line.method }}</td><td>{{ line.trials }}</td>
<td>{{ '%.2f' % line.error }}</td>
<td>{{ '%.2f' % line.error_share if line.error_share is not none and line.jitter else '–' }}</td>
<td>{{ '%.1f' % (100 * line.failures) }} %</td><td>{{ '%.2f' % line.psnr }}</td><td>{{ '%+.2f' % line.gain }}</td>
<td>{{ '%+.2f' % line.gain_low }} to {{ '%+.2f' % line.gain_high }}</td><td>{{ '%+.2f' % line.worst_gain }}</td>
<td>{{ '%.3f' % line.ssim }}</td><td>{{ '%.1f' % line.ms }}</td></tr>{% endfor %}</table></div>{% endif %}
</body></html>
"""


def write_page(path: Path, running: dict[str, Method], results: Path) -> None:
    """Write the page; the tables come from the results of an earlier run, where there are any."""
    rows = []
    for size, jitter, level, photo in SHOWN:
        trial = make_trial(PHOTOS["report"], photo, size, jitter, SEVERITIES[level], 0, 8)
        title = f"{size} px, corner jitter {jitter:.0%}, severity {level}: {PHOTOS['report'][photo]}"
        rows.append({"title": title, "panels": _panels(trial, running)})
    known = json.loads(results.read_text()) if results.is_file() else {}
    template = Environment(autoescape=True).from_string(_TEMPLATE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(template.render(rows=rows, lines=known.get("lines", []), bars=known.get("bars", [])))


def _panels(trial: Trial, running: dict[str, Method]) -> list[dict[str, str]]:
    truth = trial.truth[0]
    plain = trial.candidates.mean(0)
    still = torch.zeros(*trial.candidates.shape[:2], *trial.candidates.shape[-2:], 2)
    true_flow = _true_flow(trial)
    largest = float(true_flow.square().sum(0).amax().sqrt())
    panels = [
        _panel("photo", "the truth", truth),
        _panel(f"candidate {_CANDIDATE}", "as a seed might hold it", trial.candidates[_CANDIDATE, 0]),
        _panel("plain mean", _note(trial, plain, still), plain[0]),
    ]
    pictures = []
    for method, name in (("ours wiener", "ours"), ("ours huber", "ours, robust mean"), ("dis", "DIS flow")):
        if method not in running:
            continue
        image, displacement = running[method](trial.candidates)
        panels.append(_panel(name, _note(trial, image, displacement), image[0]))
        pictures.append((name, displacement))
        if method == "ours wiener":
            after = image
    panels.append(_panel("error before", "plain mean less photo", 2 * (plain[0] - truth).abs()))
    panels.append(_panel("error after", "ours less photo", 2 * (after[0] - truth).abs()))
    panels.append(_panel("true flow", f"full colour: {largest:.1f} px", flow_picture(true_flow, largest)))
    for name, displacement in pictures:
        if name != "ours, robust mean":
            field = to_pixels(displacement)[_CANDIDATE, 0]
            panels.append(_panel(f"flow: {name}", f"candidate {_CANDIDATE}", flow_picture(field, largest)))
    return panels


def _true_flow(trial: Trial) -> Tensor:
    """The displacement of the shown candidate in pixels: the inverse of its warp, by fixed-point iteration."""
    size = trial.truth.shape[-1]
    base = base_grid(size, size, trial.truth).expand(len(trial.candidates), 1, size, size, 2)
    places = base
    for _ in range(20):
        places = places + base - trial.warp(places)
    return to_pixels(places - base)[_CANDIDATE, 0]


def _note(trial: Trial, image: Tensor, displacement: Tensor) -> str:
    error = float(endpoint_errors(trial, displacement).mean())
    return f"{quality(image, trial.truth)[0]:.1f} dB, off by {error:.1f} px"


def _panel(name: str, note: str, image: Tensor) -> dict[str, Any]:
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return {"name": name, "note": note, "png": base64.b64encode(stream.getvalue()).decode()}

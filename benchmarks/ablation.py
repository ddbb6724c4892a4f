"""What each choice of the default preset is worth: the default against itself with one setting changed.

    python -m benchmarks.ablation              # C4 and C8, photo sets 0 and 3; json in benchmarks/results/

Runs the real command (see `peers.py` for the cells). One row per change, mean PSNR per cell and photo set.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .peers import run_ours
from .photos import write_photos

CHANGES = {
    "default": (),
    "without layer peeling": ("peeling.enabled=false",),
    "without group consistency": ("objective.group_weight=0",),
    "plain mean instead of registration": ("registration.method=none",),
    "Adam instead of signed Adam": ("agents.sign=false",),
    "pixel noise 0.2": ("agents.noise=0.2",),
    "no box": ("agents.box=false",),
    "anisotropic total variation": ("objective.total_variation=anisotropic",),
    "total variation x 1/2": ("objective.total_variation_weight=0.1",),
    "total variation x 2": ("objective.total_variation_weight=0.4",),
    "cosine loss": ("objective.gradient_loss=cosine",),
    "no total variation": ("objective.total_variation_weight=0",),
}


def main() -> None:
    """Print the table and write its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--shifts", type=int, nargs="+", default=[0, 3], help="photo sets")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--only", nargs="+", help="words that a change's name must contain one of")
    options = parser.parse_args()
    chosen = {n: w for n, w in CHANGES.items() if not options.only or any(word in n for word in options.only)}
    columns = [(batch, shift) for batch in options.cells for shift in options.shifts]
    rows: list[dict[str, Any]] = []
    table = Table(title="mean PSNR in dB (constant image in the last row)")
    for heading in ("change", *(f"C{batch}, photos {shift}" for batch, shift in columns)):
        table.add_column(heading)
    floors: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, words in chosen.items():
            values = []
            for batch, shift in columns:
                photos = write_photos(Path(folder) / f"photos-{shift}", shift)
                words_of_run = (*words, f"agents.iterations={options.steps}")
                found = run_ours(photos, batch, words_of_run, Path(folder) / "out")
                rows.append({"change": name, "cell": f"C{batch}", "photos": shift, **found})
                values.append(found)
            floors = [f"{value['constant']:.1f}" for value in values]
            table.add_row(name, *(f"{value['psnr']:.1f}" for value in values))
    table.add_row("constant image", *floors)
    Console(width=120).print(table)
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "ablation.json").write_text(json.dumps({"steps": options.steps, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

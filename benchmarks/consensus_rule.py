"""Whether `register`'s default rule of the consensus is ever the worse of the two it chooses from.

    python -m benchmarks.consensus_rule          # about two minutes on one core; json in benchmarks/results/

Photos and warps of `registration.py`, with seeds that were not used there; and seeds that have converged: one picture
with an error that all of them share, and as little of their own as 1e-4 to 3e-2 of its contrast. Each line: mean PSNR
of `huber`, `wiener` and `auto`, and by how much `auto` is at worst behind the better of them on one image.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from gradinversion.registration import RegistrationConfig, register
from gradinversion.registration.contrast import blur
from torch import Tensor

from .registration_measures import quality
from .registration_scenes import PHOTOS, SEVERITIES, canvas_of, make_trial

RULES = ("huber", "wiener", "auto")
RESULTS = Path(__file__).parent / "results" / "consensus_rule.json"
WARPED = [(224, 0.05, 1), (224, 0.05, 2), (224, 0.05, 3), (224, 0.02, 0), (64, 0.05, 1), (64, 0.05, 3),
          (32, 0.05, 2), (32, 0.08, 0), (32, 0.0, 0)]  # fmt: skip
OWN = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2)


def warped(photos: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Cell, candidates and truth of each trial."""
    for size, jitter, severity in WARPED:
        for photo in range(photos):
            trial = make_trial(PHOTOS["report"], photo, size, jitter, SEVERITIES[severity], 77, 8)
            yield f"{size} px, {jitter:.0%}, severity {severity}", trial.candidates, trial.truth


def converged(photos: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The same for seeds that agree but for a little; half of what is their own is smooth."""
    for own in OWN:
        for photo in range(photos):
            generator = torch.Generator().manual_seed(photo)
            truth = canvas_of(PHOTOS["report"][photo], 32)[..., 8:40, 8:40]
            shared = blur(torch.randn(truth.shape, generator=generator), 1.5)
            rough = torch.randn(4, *truth.shape, generator=generator)
            smooth = blur(rough.flip(0), 1.5)
            mixed = rough / rough.std() + smooth / smooth.std()
            shown = truth + 0.02 * shared / shared.std() + own * truth.std() * mixed
            yield f"32 px, converged, own {own:g}", shown, truth


def main() -> None:
    """Print the table and write its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[list[float]]] = {}
    for cell, candidates, truth in (*warped(options.photos), *converged(options.photos)):
        row = [
            quality(register(candidates, config=RegistrationConfig(consensus=rule)).images, truth)[0] for rule in RULES
        ]
        found.setdefault(cell, []).append(row)
    lines = []
    for cell, rows in found.items():
        means = {rule: sum(column) / len(rows) for rule, column in zip(RULES, zip(*rows, strict=True), strict=True)}
        behind = max(max(huber, wiener) - auto for huber, wiener, auto in rows)
        lines.append({"cell": cell, "images": len(rows), **means, "worst": behind})
        print(f"{cell:28} " + " ".join(f"{means[rule]:6.2f}" for rule in RULES) + f"  worst {behind:5.2f}", flush=True)
    RESULTS.write_text(json.dumps({"rules": RULES, "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()

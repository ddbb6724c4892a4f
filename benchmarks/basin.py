"""From how near the private images a descent finds them: what stands in the way where an attack fails.

    python -m benchmarks.basin                 # C4 and the pooled ResNet P4; json in benchmarks/results/
    python -m benchmarks.basin --cells P4 --steps 1000

One agent begins at the private images plus Gaussian noise of a deviation in normalised pixels, and descends the default
objective without layer peeling and with little total variation (weight 0.02), at a peak learning rate of a fifth of
that deviation. Printed are the PSNR and the gradient loss at the start and at the end. Where the gradient determines
the images, the end is better than the start. Where it does not, the gradient loss falls and the PSNR does not rise:
other images give nearly the same gradient, and no better search for a small gradient loss will tell them apart.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from gradinversion.agents import Agent, AgentsConfig, ObjectiveConfig
from gradinversion.agents.objective import Objective
from gradinversion.audit import psnr
from gradinversion.capture import capture_gradient, load_images, load_model
from gradinversion.target import Target

from .networks import POOLED_RESNET
from .photos import write_photos

CELLS = {"C4": "convnet", "P4": POOLED_RESNET}
DEVIATIONS = (0.05, 0.2, 0.5, 1.0)
BATCH, SIDE = 4, 32
RESULTS = Path(__file__).parent / "results" / "basin.json"


@dataclass(frozen=True)
class Row:
    """One descent; PSNR in dB, gradient loss relative (0: an exact match)."""

    cell: str
    deviation: float
    psnr_start: float
    psnr_end: float
    loss_start: float
    loss_end: float


def descend(cell: str, deviation: float, steps: int, folder: Path) -> Row:
    """Begin so far from the truth, and see where it ends."""
    truth, _ = load_images(str(write_photos(folder)), BATCH, SIDE)
    model, labels = load_model(CELLS[cell], seed=0), torch.arange(BATCH)
    update = capture_gradient(model, truth, labels)
    config = ObjectiveConfig(total_variation_weight=0.02)
    target = Target(update, model, labels)
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    begin = update.normalisation.apply(truth) + deviation * noise
    agent = Agent(target, config, AgentsConfig(iterations=steps, learning_rate=deviation / 5, warmup=0), 0)
    agent.join(0, begin)
    start = agent.images
    agent.run(steps)
    end = agent.images
    objective = Objective(target, config)

    def quality(images: torch.Tensor) -> float:
        return float(psnr(update.normalisation.invert(images).clamp(0, 1), truth).mean())

    losses = objective.gradient_loss(start), objective.gradient_loss(end)
    return Row(cell, deviation, quality(start), quality(end), *losses)


def main() -> None:
    """Print a line for each descent and write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=tuple(CELLS), default=list(CELLS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--photos", type=Path, default=Path("build/photos"), help="folder for the photos")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print("cell  deviation  PSNR start  end    gradient loss start  end")
    for cell in options.cells:
        for deviation in DEVIATIONS:
            row = descend(cell, deviation, options.steps, options.photos)
            print(
                f"{row.cell:5} {row.deviation:9.2f}  {row.psnr_start:10.2f}  {row.psnr_end:5.2f}  "
                f"{row.loss_start:19.3f}  {row.loss_end:5.3f}",
                flush=True,
            )
            rows.append(asdict(row))
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps({"steps": options.steps, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

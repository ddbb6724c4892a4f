"""What a step of a large batch takes in memory and time when its graph is made in parts (`agents.images_at_once`).

    python -m benchmarks.batch_in_parts --batch 48 --at-once 4     # ResNet-50, 224 px: about four minutes of one core

The update is made in a process of its own, so that the peak is that of an agent: model, update, and one step of the
default objective. One line of JSON per number of images at once; 0 is the whole batch.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torchvision
from gradinversion.agents import Objective, ObjectiveConfig
from gradinversion.capture import CapturedUpdate, capture_gradient
from gradinversion.target import Target
from torch import nn

_SIZE = 224


def network(name: str) -> nn.Module:
    """With random weights, in evaluation mode."""
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model.eval()


def capture(name: str, batch: int, path: Path) -> None:
    """Save the update of random images."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batch, 3, _SIZE, _SIZE, generator=generator)
    capture_gradient(network(name), images, torch.arange(batch)).save(path)


def step(name: str, path: Path, at_once: int) -> dict[str, float]:
    """One evaluation of the objective and its derivative."""
    update = CapturedUpdate.load(path)
    target = Target(update, network(name), torch.arange(update.image_count))
    objective = Objective(target, ObjectiveConfig(), images_at_once=at_once)
    images = torch.randn(update.image_count, *update.image_shape, generator=torch.Generator().manual_seed(2))
    images.requires_grad_()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    began = time.process_time()
    terms = objective.terms(images)
    (derivative,) = torch.autograd.grad(terms["total"], images)
    return {
        "batch": update.image_count,
        "at_once": at_once,
        "before_mib": round(before),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
        "seconds": round(time.process_time() - began, 1),
        "gradient": float(terms["gradient"].detach()),
        "derivative": float(derivative.norm()),
    }


def main() -> None:
    """Print one line per number of images at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--at-once", type=int, nargs="+", default=[0, 4, 1])
    parser.add_argument(
        "--captured", type=Path, help="an update that is there; with it one step is made in this process"
    )
    parser.add_argument("--make", type=Path, help="only make the update")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.make:
        capture(options.network, options.batch, options.make)
        return
    if options.captured:
        print(json.dumps(step(options.network, options.captured, options.at_once[0])), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "update.safetensors")
        again = [sys.executable, "-m", "benchmarks.batch_in_parts", "--network", options.network]
        subprocess.run([*again, "--batch", str(options.batch), "--make", path], check=True)
        for at_once in options.at_once:
            subprocess.run([*again, "--captured", path, "--at-once", str(at_once)], check=True)


if __name__ == "__main__":
    main()

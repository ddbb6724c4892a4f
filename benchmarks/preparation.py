"""What it costs to prepare an attack: `python -m benchmarks.preparation` prints processor seconds for several batches.

    python -m benchmarks.preparation 16 24 32      # batch sizes; 48 without any
    python -m benchmarks.preparation 8 --network resnet18      # torchvision's instead, which is taken apart by taps

The client is ConvNet-32 with random weights, 100 classes and 64-pixel images: quarters of the photos that scikit-image
ships, with labels that repeat, so that the batch is taken apart by the units that are shut. Preparing is everything
between the captured update and the first step of an agent; it is done once for all seeds.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from gradinversion.capture import capture_gradient, load_images, load_model
from gradinversion.coordinator import AttackConfig
from gradinversion.target.preparation import prepare

from .residual import torchvision_network

SIZE, CLASSES, PHOTOS = 64, 100, 24


def measure(batch: int, network: str) -> str:
    """One line for a batch of so many images."""
    whole = load_images("photos", PHOTOS, 2 * SIZE)[0]
    quarters = torch.cat([whole[:, :, y : y + SIZE, x : x + SIZE] for y in (0, SIZE) for x in (0, SIZE)])
    images = quarters[torch.randperm(len(quarters), generator=torch.Generator().manual_seed(1))[:batch]]
    labels = torch.randint(0, CLASSES, (batch,), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    named = network == "convnet"
    model = load_model("convnet", CLASSES, SIZE) if named else torchvision_network(network)(CLASSES).eval()
    update = capture_gradient(model, images, labels)
    began = time.process_time()
    prepared = prepare(update, model, AttackConfig().request)
    seconds = time.process_time() - began
    right = torch.equal(prepared.labels.labels, labels.sort().values)
    anchor = prepared.target.anchor
    error = "no anchor" if anchor is None else f"anchor {anchor.module!r}, error {anchor.error:.2g}"
    said = f"labels by {prepared.labels.method} {'right' if right else 'wrong'}, {error}"
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"{batch:4d} images: {seconds:8.2f} s of processor time, {memory:.2f} GiB in all ({said})"


def main() -> None:
    """Measure the batch sizes given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("batches", nargs="*", type=int, default=[48])
    parser.add_argument("--network", default="convnet")
    torch.set_num_threads(1)
    options = parser.parse_args()
    for batch in options.batches:
        print(measure(batch, options.network), flush=True)


if __name__ == "__main__":
    main()

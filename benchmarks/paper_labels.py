"""Labels of trained networks, each class once in a batch: the paper's own column, for batches of 8 to 48.

    python -m benchmarks.paper_labels          # json in benchmarks/results/paper_labels.json

Networks are those of `paper` with a thousand classes. Images are crops of photos that nothing was tuned on (those of
`unseen_photos`). Labels are any classes, each once (``any``), or the classes that the network gives the images, so that
it is more or less sure of each (``own``; batches of as many different ones as there are). Gradients of the final layer
are computed from each image's features, in float32 and evaluation mode, as in `labels`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from gradinversion.audit.label_scores import score_labels
from gradinversion.capture import IMAGENET, Normalisation, recover_labels
from PIL import Image
from torch import Tensor, nn

from .imagenet_lite0 import CLASSES, imagenet_lite0
from .imagenet_lite0 import PIXELS as LITE0_PIXELS
from .imagenet_resnet import PIXELS as RESNET_PIXELS
from .imagenet_resnet import HalfResNet50
from .labels import Pool, make_pool
from .unseen_photos import PHOTOS, read_photo

RESULTS = Path(__file__).parent / "results" / "paper_labels.json"
BATCHES = (8, 16, 24, 32, 48)
_CROPS = 40
"""Of each photo."""
_FIRST_SEED = 100


def networks() -> Iterator[tuple[str, nn.Module, Normalisation]]:
    """Name, network and how pixels enter it."""
    yield "EfficientNet-Lite0, ImageNet", imagenet_lite0(), LITE0_PIXELS
    torch.manual_seed(0)
    yield "half ResNet-50, ImageNet, new final layer", HalfResNet50(CLASSES).eval(), RESNET_PIXELS


def photos(size: int) -> Tensor:
    """Crops of photos that nothing was tuned on."""
    random, found = np.random.default_rng(_FIRST_SEED), []
    for photo in PHOTOS:
        picture = read_photo(photo)
        height, width = picture.shape[:2]
        for _ in range(_CROPS):
            side = round(random.uniform(0.3, 1) * min(height, width))
            top, left = random.integers(0, height - side + 1), random.integers(0, width - side + 1)
            square = Image.fromarray(picture[top : top + side, left : left + side])
            found.append(np.asarray(square.resize((size, size), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


def batches(pool: Pool, kind: str, size: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of each batch; none where there are not as many different labels."""
    for number in range(count):
        random = torch.Generator().manual_seed(_FIRST_SEED + number)
        order = torch.randperm(len(pool.features), generator=random)
        if kind == "any":
            yield order[:size], torch.randperm(CLASSES, generator=random)[:size]
            continue
        chosen: dict[int, int] = {}
        for index in order.tolist():
            chosen.setdefault(int(pool.labels[index]), index)
        if len(chosen) >= size:
            yield torch.tensor(list(chosen.values())[:size]), torch.tensor(list(chosen)[:size])


def measure(pool: Pool, kind: str, size: int, count: int) -> dict[str, Any]:
    """One line: the share of right labels, and of batches whose labels are all right."""
    shares, methods = list[float](), dict[str, int]()
    for indices, labels in batches(pool, kind, size, count):
        found = recover_labels(pool.update(indices, labels), pool.model)
        shares.append(score_labels(found.labels, labels).instances)
        methods[found.method] = methods.get(found.method, 0) + 1
    if not shares:
        return {"batches": 0}
    return {"batches": len(shares), "right": fmean(shares), "all_right": fmean(s == 1 for s in shares)} | {
        "methods": methods
    }


def main() -> None:
    """Measure all lines, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--count", type=int, default=20, help="batches of each line")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, lines = photos(options.size), list[dict[str, Any]]()
    for name, model, pixels in networks():
        # `make_pool` normalises as for ImageNet; what enters the network is then as it should be.
        pool = make_pool(model, IMAGENET.invert(pixels.apply(images)), torch.zeros(len(images), dtype=torch.int64))
        layer = model.get_submodule(pool.layer)
        with torch.no_grad():
            pool.labels[:] = layer(pool.features).argmax(dim=1)
        for kind in ("any", "own"):
            for size in BATCHES:
                line = {"network": name, "size": options.size, "labels": kind, "batch": size}
                lines.append(line | measure(pool, kind, size, options.count))
                print(json.dumps(lines[-1]), flush=True)
    options.out.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()

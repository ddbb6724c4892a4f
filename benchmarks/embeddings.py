"""Which embedding tells whose reconstruction a bad picture is: the choice behind Image Identifiability Precision.

    python -m benchmarks.embeddings      # about a minute on one core; the table is printed

256 crops of scikit-image's photos at 32 px are each spoilt as reconstructions are, and identified among all of them by
the cosine similarity of the embedding (the rule of `audit/identification.py`). Random crops of few photos overlap: the
share identified is low for everybody, and only the order of the embeddings counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from gradinversion.audit import Embedding, Gallery, make_embedding
from gradinversion.capture import IMAGENET, load_images, load_model
from kornia.filters import gaussian_blur2d
from torch import Tensor

from .exposure import CLASSES, make_stages

CROPS, PHOTO, SMALLEST = 256, 160, 32
Spoil = Callable[[Tensor, torch.Generator], Tensor]


def make_crops(size: int, generator: torch.Generator) -> Tensor:
    """Square crops of random size and place, at `size` pixels."""
    photos, _ = load_images("photos", 24, PHOTO)
    crops = []
    for _ in range(CROPS):
        photo = int(torch.randint(0, len(photos), (1,), generator=generator))
        side = int(torch.randint(SMALLEST, PHOTO - 15, (1,), generator=generator))
        top, left = torch.randint(0, PHOTO - side + 1, (2,), generator=generator).tolist()
        crop = photos[photo : photo + 1, :, top : top + side, left : left + side]
        crops.append(F.interpolate(crop, (size, size), mode="bilinear", antialias=True, align_corners=False))
    return torch.cat(crops)


def noise(scale: float) -> Spoil:
    """Gaussian noise of this deviation."""
    return lambda images, generator: (images + scale * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def blur(sigma: float) -> Spoil:
    """A Gaussian blur of this deviation in pixels."""
    return lambda images, generator: gaussian_blur2d(images, (25, 25), (sigma, sigma))


def ghost(share: float) -> Spoil:
    """This share of another image shines through, as when a batch is not taken apart."""
    return lambda images, generator: (1 - share) * images + share * images.roll(1, 0)


def shift(pixels: int) -> Spoil:
    """Moved down and right."""
    return lambda images, generator: F.pad(images, (pixels, 0, pixels, 0), mode="reflect")[
        ..., : images.shape[-2], : images.shape[-1]
    ]


def pale(contrast: float) -> Spoil:
    """Contrast reduced to this share."""
    return lambda images, generator: contrast * images + (1 - contrast) * images.mean((1, 2, 3), keepdim=True)


def chain(*steps: Spoil) -> Spoil:
    """One after another."""

    def spoil(images: Tensor, generator: torch.Generator) -> Tensor:
        for step in steps:
            images = step(images, generator)
        return images

    return spoil


SPOILT: dict[str, Spoil] = {
    "noise 0.2": noise(0.2),
    "noise 0.5": noise(0.5),
    "noise 1": noise(1.0),
    "blur 2": blur(2.0),
    "blur 4": blur(4.0),
    "ghost 0.3": ghost(0.3),
    "ghost 0.45, noise 0.3": chain(ghost(0.45), noise(0.3)),
    "pale 0.3, noise 0.2": chain(pale(0.3), noise(0.2)),
    "shift 3": shift(3),
    "noise 0.5, blur 1": chain(noise(0.5), blur(1.0)),
}


def make_embeddings(size: int) -> dict[str, Embedding]:
    """What can be had without a download."""
    models = {"random ConvNet": load_model("convnet", CLASSES, size, seed=0)}
    models["random ResNet-18"] = load_model("resnet18", CLASSES, size, seed=0)
    trained = load_model("convnet", CLASSES, size, seed=0)
    photos, _ = load_images("photos", 24, 64)
    trained.load_state_dict(make_stages(photos)[200][0])
    models["trained ConvNet"] = trained
    found = {"pixels": make_embedding("pixels")}
    found |= {f"model: {n}": make_embedding("model", model=m, normalisation=IMAGENET) for n, m in models.items()}
    for grid in (4, 16):
        found[f"pixels at {grid} x {grid}"] = Embedding(f"{grid}", partial(thumbnails, grid=grid))
    return found


def thumbnails(images: Tensor, grid: int) -> Tensor:
    """As the embedding `pixels`, at another size."""
    small = F.adaptive_avg_pool2d(images, grid)
    return (small - small.mean((2, 3), keepdim=True)).flatten(1)


def main() -> None:
    """Print the table: share identified."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    crops = make_crops(32, torch.Generator().manual_seed(0))
    spoilt = {name: spoil(crops, torch.Generator().manual_seed(1)) for name, spoil in SPOILT.items()}
    print("| embedding | " + " | ".join(spoilt) + " | mean |\n|---" + "|---" * (len(spoilt) + 1) + "|")
    for name, embedding in make_embeddings(32).items():
        gallery = Gallery(crops, embedding)
        shares = [sum(gallery.identify(images)) / CROPS for images in spoilt.values()]
        cells = [f"{share:.0%}" for share in (*shares, sum(shares) / len(shares))]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

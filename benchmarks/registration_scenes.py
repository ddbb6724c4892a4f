"""Candidates of photos under known warps: what the benchmark of registration is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from gradinversion.registration.contrast import blur
from gradinversion.registration.warp import (
    base_grid,
    homography_from_corners,
    resize_field,
    sample,
    sample_field,
    transform,
)
from torch import Tensor

PHOTOS = {
    "tune": ("coffee", "camera", "brick", "stereo_motorcycle", "grass", "china right"),
    "report": ("astronaut", "chelsea", "rocket", "flower", "china left", "coins", "immunohistochemistry", "retina",
               "hubble_deep_field", "gravel"),
}  # fmt: skip
CANVAS = 1.5  # the photo reaches this much further than the frame, so that warped candidates show real surroundings


@dataclass(frozen=True)
class Severity:
    """How a candidate differs from the warped photo, besides the warp."""

    noise: float
    blur: float
    contrast: float
    occlusion: float
    cross_talk: float


SEVERITIES = (
    Severity(0.02, 0.0, 1.0, 0.0, 0.0),
    Severity(0.1, 0.7, 0.9, 0.08, 0.1),
    Severity(0.2, 1.2, 0.7, 0.15, 0.2),
    Severity(0.4, 2.0, 0.5, 0.25, 0.35),
)


@dataclass(frozen=True)
class Trial:
    """Candidates of one photo with the truth about them."""

    truth: Tensor  # (1, C, H, W)
    candidates: Tensor  # (N, 1, C, H, W)
    warp: Callable[[Tensor], Tensor]  # places of a candidate -> places of the truth, (N, 1, H, W, 2)


def load_photo(name: str) -> Tensor:
    """A photo `(3, H, W)` in [0, 1] from the wheels of scikit-image and scikit-learn."""
    if name.split()[0] in ("flower", "china"):
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image(f"{name.split()[0]}.jpg")
        half = pixels.shape[1] // 2
        if name.startswith("china"):
            pixels = pixels[:, half:] if name.endswith("right") else pixels[:, :half]
    else:
        from skimage import data

        pixels = getattr(data, name)()
        pixels = pixels[0] if isinstance(pixels, tuple) else pixels
    image = torch.from_numpy(np.array(pixels)).float() / 255
    return image.permute(2, 0, 1) if image.ndim == 3 else image.expand(3, -1, -1)


@lru_cache(maxsize=64)
def canvas_of(name: str, size: int) -> Tensor:
    """The centre square of a photo at `CANVAS` times the size of the frame."""
    photo = load_photo(name)
    side = min(photo.shape[1:])
    top, left = (photo.shape[1] - side) // 2, (photo.shape[2] - side) // 2
    wide = round(CANVAS * size / 2) * 2
    square = photo[None, :, top : top + side, left : left + side]
    return F.interpolate(square, size=(wide, wide), mode="bilinear", antialias=True).clamp(0, 1)


def make_trial(
    names: tuple[str, ...], photo: int, size: int, jitter: float, severity: Severity, seed: int, n: int
) -> Trial:
    """N warped and degraded candidates of a photo; cross-talk comes from the next photos of the list."""
    generator = torch.Generator().manual_seed(1000 * seed + photo)
    canvas = canvas_of(names[photo], size)
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    moved = (torch.rand(n, 4, 2, generator=generator) * 2 - 1) * 2 * jitter
    homographies = homography_from_corners(corners, corners + moved - moved.mean(0))
    elastic = torch.randn(n, 1, 6, 6, 2, generator=generator) * jitter * 0.4
    elastic = resize_field(elastic - elastic.mean(0), 4 * 28, 4 * 28)
    elastic = blur(elastic.movedim(-1, -3), 8.0).movedim(-3, -1)

    def warp(places: Tensor) -> Tensor:
        return transform(homographies[:, None, None, None], places + sample_field(elastic, places))

    frame = base_grid(size, size, canvas)
    truth = crop(canvas, frame[None])
    shown = crop(canvas[None].expand(n, -1, -1, -1, -1), warp(frame.expand(n, 1, -1, -1, -1)))
    others = [
        crop(canvas_of(names[(photo + 1 + i) % len(names)], size), frame[None]) for i in range(min(n, len(names) - 1))
    ]
    return Trial(truth, degrade(shown, others, severity, generator), warp)


def crop(canvas: Tensor, places: Tensor) -> Tensor:
    """The canvas at places given in the frame's coordinates."""
    wide = canvas.shape[-1]
    size = places.shape[-2]
    return sample(canvas, places * (size / wide), mode="bicubic").clamp(0, 1)


def degrade(shown: Tensor, others: list[Tensor], severity: Severity, generator: torch.Generator) -> Tensor:
    """Cross-talk, occlusion by a rectangle of another photo, blur, loss of contrast, noise."""
    n, _, _, size, _ = shown.shape
    images = shown.clone()
    for i in range(n):
        other = others[i % len(others)][0]
        images[i, 0] = (1 - severity.cross_talk) * images[i, 0] + severity.cross_talk * other
        if severity.occlusion:
            side = round(size * math.sqrt(severity.occlusion))
            top, left = (int(v) for v in torch.randint(0, size - side + 1, (2,), generator=generator))
            images[i, 0, :, top : top + side, left : left + side] = other[:, :side, :side]
    if severity.blur:
        images = blur(images, severity.blur)
    level = images.mean(dim=(-3, -2, -1), keepdim=True)
    images = level + severity.contrast * (images - level)
    return images + severity.noise * torch.randn(images.shape, generator=generator)

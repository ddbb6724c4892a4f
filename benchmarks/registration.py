"""How well registration brings the candidates of several seeds together, on photos with known warps.

    python benchmarks/registration.py            # 10 photos x 3 seeds, every cell (tens of minutes on one core)
    python benchmarks/registration.py --quick    # 3 photos, 1 seed, the cells with a bar

N candidates of a photo are made by corner-jitter homographies plus an elastic displacement, then degraded. The shared
warp is taken out of the truth as well (the corner jitter and the elastic field of the N candidates sum to zero), since
no method that sees the candidates alone can know it. Reported per cell: end-point error as a share of the identity's
(weighted by texture, a border of 8 % left out), failures (share of candidates whose error is above the identity's),
PSNR and SSIM of the consensus after a gain and offset per channel, milliseconds of
processor time per candidate.

Peers: the plain mean, and OpenCV's DIS flow on the same schedule (three rounds, the target averaged again each round
by the same robust mean, a homography fitted to the flow in the first two rounds, the shared warp removed) when cv2 is
installed. `tune` photos were used to choose constants; results are for the `report` photos.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gradinversion.registration import RegistrationConfig, register
from gradinversion.registration.consensus import average
from gradinversion.registration.contrast import blur, gradients, gray
from gradinversion.registration.warp import (
    base_grid,
    homography_from_corners,
    inside,
    remove_shared_displacement,
    resize_field,
    sample,
    sample_field,
    to_pixels,
    transform,
)
from skimage.metrics import structural_similarity
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


def dis_on_our_schedule(
    candidates: Tensor, rounds: int = 3, homography_rounds: int = 2, preset: int = 2
) -> tuple[Tensor, Tensor]:
    """Consensus and displacement `(N, 1, H, W, 2)` by OpenCV's DIS flow between the robust mean and each candidate."""
    import cv2

    flow_of = cv2.DISOpticalFlow_create(preset)
    size = candidates.shape[-1]
    weights = torch.ones(len(candidates))
    plain = gray(candidates)
    base = base_grid(size, size, candidates)
    field = torch.zeros(*candidates.shape[:2], size, size, 2)

    def eight_bit(image: Tensor) -> np.ndarray:
        return (image.clamp(0, 1) * 255).byte().numpy()

    for turn in range(rounds):
        grid = base + field
        target = eight_bit(average(sample(plain, grid), inside(grid), weights, "huber")[0, 0])
        for i in range(len(candidates)):
            start = (field[i, 0] * (size / 2)).numpy().copy()
            flow = flow_of.calc(target, eight_bit(plain[i, 0, 0]), start)
            if turn < homography_rounds:
                flow = homography_of(flow)
            field[i, 0] = torch.from_numpy(flow) * (2 / size)
        field = remove_shared_displacement(field)
    grid = base + field
    return average(sample(candidates, grid), inside(grid), weights, "huber"), field


def homography_of(flow: np.ndarray) -> np.ndarray:
    """The flow of the homography that fits a flow best (least median of squares on a grid of points)."""
    import cv2

    size = flow.shape[0]
    axis = np.arange(2, size, max(1, size // 28), dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    moved = points + flow[points[:, 1].astype(int), points[:, 0].astype(int)]
    matrix, _ = cv2.findHomography(points, moved, cv2.RANSAC, 1.5 * size / 224 + 0.5)
    if matrix is None:
        return flow
    full = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 1, 2).astype(np.float32)
    return (cv2.perspectiveTransform(full, matrix) - full).reshape(size, size, 2).astype(np.float32)


def endpoint_errors(trial: Trial, displacement: Tensor) -> Tensor:
    """Mean error in pixels per candidate, weighted by the texture of the truth, 8 % of the border left out.

    Args:
        displacement: `(N, 1, H, W, 2)` in [-1, 1] units.
    """
    size = trial.truth.shape[-1]
    base = base_grid(size, size, displacement)
    error = trial.warp(base + displacement) - base
    length = to_pixels(error).square().sum(2).sqrt()[:, 0]
    gx, gy = gradients(blur(gray(trial.truth)[:, 0], 1.0))
    texture = (gx.square() + gy.square()).sqrt()[0]
    edge = round(0.08 * size)
    texture[:edge] = texture[-edge:] = texture[:, :edge] = texture[:, -edge:] = 0
    return (length * texture).sum((-2, -1)) / texture.sum().clamp_min(1e-9)


def quality(consensus: Tensor, truth: Tensor) -> tuple[float, float]:
    """PSNR in dB and SSIM after the least-squares gain and offset per channel."""
    image, target = consensus.flatten(2)[0], truth.flatten(2)[0]
    centred, wanted = image - image.mean(1, keepdim=True), target - target.mean(1, keepdim=True)
    gain = (centred * wanted).sum(1, keepdim=True) / centred.square().sum(1, keepdim=True).clamp_min(1e-12)
    fitted = (gain * centred + target.mean(1, keepdim=True)).reshape(truth.shape[1:])
    psnr = -10 * math.log10(max(float((fitted - truth[0]).square().mean()), 1e-12))
    return psnr, float(structural_similarity(fitted.numpy(), truth[0].numpy(), channel_axis=0, data_range=1.0))


Method = Callable[[Tensor], tuple[Tensor, Tensor]]


def ours(method: str, **settings: object) -> Method:
    """One of our methods as consensus and displacement in [-1, 1] units."""
    config = RegistrationConfig(method=method, **settings)  # type: ignore[arg-type]

    def run(candidates: Tensor) -> tuple[Tensor, Tensor]:
        consensus = register(candidates, config=config)
        if consensus.displacement is None:
            return consensus.images, torch.zeros(*candidates.shape[:2], *candidates.shape[-2:], 2)
        half = torch.tensor([candidates.shape[-1] / 2, candidates.shape[-2] / 2])
        return consensus.images, consensus.displacement.movedim(2, -1) / half

    return run


def methods() -> dict[str, Method]:
    """Ours and the peers that are installed."""
    known: dict[str, Method] = {name: ours(name) for name in ("none", "coarse", "coarse_to_fine")}
    try:
        import cv2
    except ImportError:
        print("OpenCV is not installed: pip install opencv-python-headless to compare with DIS")
        return known
    cv2.setNumThreads(1)
    known["dis"] = dis_on_our_schedule
    known["dis_dense"] = lambda candidates: dis_on_our_schedule(candidates, homography_rounds=0)
    return known


def measure(name: str, run: Method, trial: Trial) -> dict[str, float | str]:
    """All figures of one method on one trial."""
    started = time.process_time()
    image, displacement = run(trial.candidates)
    seconds = time.process_time() - started
    errors = endpoint_errors(trial, displacement)
    identity = endpoint_errors(trial, torch.zeros_like(displacement))
    psnr, ssim = quality(image, trial.truth)
    return {
        "method": name,
        "error": float(errors.mean()),
        "identity_error": float(identity.mean()),
        "failures": float((errors > identity + 0.05).float().mean()),
        "psnr": psnr,
        "ssim": ssim,
        "ms": 1000 * seconds / len(trial.candidates),
    }


def interval(values: list[float], generator: np.random.Generator) -> tuple[float, float, float]:
    """Mean and its 95 % bootstrap interval."""
    data = np.asarray(values)
    means = generator.choice(data, (1000, len(data))).mean(1)
    return float(data.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def summarise(cell: dict[str, float | int], rows: list[dict[str, float | str]]) -> list[dict[str, Any]]:
    """One line per method of a cell; the gain is over the plain mean of the same trial."""
    generator = np.random.default_rng(0)
    by_method: dict[str, list[dict[str, float | str]]] = {}
    for row in rows:
        by_method.setdefault(str(row["method"]), []).append(row)
    plain = [float(row["psnr"]) for row in by_method["none"]]
    lines: list[dict[str, Any]] = []
    for method, own in by_method.items():
        column = {key: [float(row[key]) for row in own] for key in own[0] if key != "method"}
        gains = [p - q for p, q in zip(column["psnr"], plain, strict=True)]
        gain = interval(gains, generator)
        identity = sum(column["identity_error"])
        lines.append(
            cell
            | {"method": method, "gain": gain[0], "gain_low": gain[1], "gain_high": gain[2], "worst_gain": min(gains)}
            | {"error_share": sum(column["error"]) / identity if identity else None}
            | {key: float(np.mean(column[key])) for key in ("error", "failures", "psnr", "ssim")}
            | {"ms": float(np.median(column["ms"]))}
        )
    return lines


def show(line: dict[str, Any]) -> None:
    """One line of the table."""
    share = "    -" if line["error_share"] is None else f"{line['error_share']:5.2f}"
    print(
        f"{line['size']:4} {100 * line['jitter']:3.0f} {line['severity']:3} {line['method']:15}"
        f"{line['error']:7.2f} {share} {100 * line['failures']:5.1f} {line['psnr']:6.2f} {line['gain']:+5.2f}"
        f" [{line['gain_low']:+5.2f} {line['gain_high']:+5.2f}] {line['worst_gain']:+5.2f} {line['ssim']:5.3f}"
        f" {line['ms']:6.1f}",
        flush=True,
    )


def cells(quick: bool) -> list[tuple[int, float, int]]:
    """(size, jitter, severity) of every cell."""
    if quick:
        return [
            (224, 0.05, 1),
            (224, 0.08, 1),
            (224, 0.05, 2),
            (224, 0.05, 3),
            (224, 0.0, 1),
            (64, 0.05, 1),
            (32, 0.05, 2),
        ]
    grid = [(size, jitter, level) for size in (224, 64, 32) for jitter in (0.02, 0.05, 0.08) for level in range(4)]
    return grid + [(size, 0.0, level) for size in (224, 64, 32) for level in (0, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark of registration on photos with known warps.")
    parser.add_argument("--quick", action="store_true", help="3 photos, 1 seed, only the cells with a bar")
    parser.add_argument("--photos", choices=tuple(PHOTOS), default="report")
    parser.add_argument("--count", type=int, help="use this many photos")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--only", help="cells to run, for example 224:0.05:1,64:0.05:1")
    parser.add_argument("--methods", help="comma list")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="json of every line")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.basicConfig(level=logging.WARNING)
    names = PHOTOS[args.photos]
    count = args.count or (3 if args.quick else len(names))
    seeds = args.seeds or (1 if args.quick else 3)
    chosen = cells(args.quick)
    if args.only:
        chosen = [(int(a), float(b), int(c)) for a, b, c in (cell.split(":") for cell in args.only.split(","))]
    running = {k: v for k, v in methods().items() if not args.methods or k in ("none", *args.methods.split(","))}
    print(f"{args.photos} photos: {', '.join(names[:count])}; {seeds} seeds; {args.candidates} candidates")
    print("size  % sev method           error share fail%   psnr  gain [95 % interval] worst  ssim  ms/candidate")
    lines: list[dict[str, Any]] = []
    for size, jitter, level in chosen:
        rows = []
        for seed in range(seeds):
            for photo in range(count):
                trial = make_trial(names, photo, size, jitter, SEVERITIES[level], seed, args.candidates)
                rows += [measure(name, run, trial) for name, run in running.items()]
        for line in summarise({"size": size, "jitter": jitter, "severity": level}, rows):
            show(line)
            lines.append(line)
    if args.out:
        args.out.write_text(json.dumps({"severities": [asdict(s) for s in SEVERITIES], "lines": lines}, indent=1))


if __name__ == "__main__":
    main()

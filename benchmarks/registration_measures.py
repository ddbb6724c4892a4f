"""What is measured of a registration, and how many measurements become one line of the table."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from gradinversion.registration.contrast import blur, gradients, gray
from gradinversion.registration.warp import base_grid, to_pixels
from skimage.metrics import structural_similarity
from torch import Tensor

from .registration_scenes import Trial

Method = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Candidates `(N, B, C, H, W)` to the consensus and the displacement `(N, B, H, W, 2)` in [-1, 1] units."""


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


def measure(name: str, run: Method, trial: Trial, identity: Tensor) -> dict[str, float | str]:
    """All figures of one method on one trial.

    Args:
        identity: `endpoint_errors` of no warp at all, which a failure is worse than.
    """
    started = time.process_time()
    image, displacement = run(trial.candidates)
    seconds = time.process_time() - started
    errors = endpoint_errors(trial, displacement) if bool(displacement.any()) else identity
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


def interval(values: list[float], photos: list[float], generator: np.random.Generator) -> tuple[float, float, float]:
    """Mean and its 95 % bootstrap interval; whole photos are drawn, since seeds of one photo are alike."""
    data = np.asarray(
        [np.mean([v for v, p in zip(values, photos, strict=True) if p == photo]) for photo in set(photos)]
    )
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
        gains = [p - q for p, q in zip(column["psnr"], plain, strict=False)]  # the first seed leads in both
        gain = interval(gains, column["photo"], generator)
        identity = sum(column["identity_error"])
        lines.append(
            cell
            | {"method": method, "gain": gain[0], "gain_low": gain[1], "gain_high": gain[2], "worst_gain": min(gains)}
            | {"error_share": sum(column["error"]) / identity if identity else None}
            | {key: float(np.mean(column[key])) for key in ("error", "failures", "psnr", "ssim")}
            | {"ms": float(np.median(column["ms"])), "trials": len(own)}
        )
    return lines

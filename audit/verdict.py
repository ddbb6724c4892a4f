"""What the numbers mean, in words. The floor is a constant image: each private image's own mean colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

MARGIN_DB = 1.0
"""A reconstruction must beat the constant image by this much to count as anything."""

CLEAR_DB = 3.0
"""From here on it counts as a leak: the squared error is at most half of the constant image's."""

RULE = (
    f"An image counts as leaked from {CLEAR_DB:g} dB above its own constant image (half its squared error), as weakly "
    f"leaked from {MARGIN_DB:g} dB, and as not better than a constant image below that."
)


class Leak(StrEnum):
    """How much of an image, or of a batch, was shown to leak."""

    LEAKED = "leaked"
    WEAK = "weak"
    NONE = "none"
    UNKNOWN = "unknown"
    FAILED = "failed"


@dataclass(frozen=True)
class Verdict:
    """A level and the words for it."""

    leak: Leak
    headline: str
    """One short sentence (for an image: a phrase)."""
    detail: str = ""
    """The numbers behind it, and what they do not show."""


def judge_image(psnr: float, floor: float) -> Verdict:
    """The verdict on one image.

    Args:
        psnr: of the reconstruction, in dB.
        floor: PSNR of the constant image, in dB (``inf`` when the private image is one flat colour).
    """
    if math.isnan(psnr):
        return Verdict(Leak.FAILED, "the reconstruction is not finite: nothing to compare")
    if math.isinf(floor):
        return Verdict(Leak.UNKNOWN, "the private image is one flat colour: a constant image is already exact")
    gain = psnr - floor
    if gain >= CLEAR_DB:
        return Verdict(Leak.LEAKED, f"leaked: {decibels(gain)} above a constant image")
    if gain >= MARGIN_DB:
        return Verdict(Leak.WEAK, f"weak leak: {decibels(gain)} above a constant image")
    return Verdict(Leak.NONE, f"not better than a constant image ({gain:+.1f} dB): no leak shown")


def judge_batch(images: Sequence[Verdict], psnr_mean: float, floor_mean: float) -> Verdict:
    """The verdict on the batch: how many images leaked, then the mean against the floor.

    Args:
        images: the verdict on each image.
        psnr_mean: mean PSNR over the images, in dB.
        floor_mean: mean PSNR of their constant images, in dB.
    """
    leaks = [image.leak for image in images]
    leaked, weak, total = leaks.count(Leak.LEAKED), leaks.count(Leak.WEAK), len(leaks)
    if Leak.LEAKED not in leaks and Leak.WEAK not in leaks and Leak.NONE not in leaks:
        return Verdict(Leak.FAILED, "Nothing could be compared", "No image has a finite PSNR and a finite floor.")
    numbers = _compare_means(psnr_mean, floor_mean, total)
    if leaked:
        share = f"All {total}" if leaked == total else f"{leaked} of {total}"
        subject = "The private image" if total == 1 else f"{share} images"
        also = f" {weak} more {'is' if weak == 1 else 'are'} weakly visible." if weak else ""
        return Verdict(Leak.LEAKED, f"{subject} leaked", numbers + also)
    if weak:
        subject = "Weak leak" if total == 1 else f"Weak leak of {weak} of {total} images"
        return Verdict(Leak.WEAK, subject, numbers)
    caution = " That is what this attack at this effort shows; it does not prove that the update is safe."
    return Verdict(Leak.NONE, "Not better than a constant image: no image leak shown", numbers + caution)


def no_ground_truth(gradient_loss: float, first_loss: float | None) -> Verdict:
    """The verdict when the private images are not known.

    Args:
        gradient_loss: of the reconstruction.
        first_loss: the mean gradient loss of the agents at their first recorded step, when there is one.
    """
    fell = f", down from {first_loss:.3g} at the first recorded step" if first_loss is not None else ""
    return Verdict(
        Leak.UNKNOWN,
        "No ground truth: judge the pictures and the gradient loss",
        f"The gradient loss of the reconstruction is {gradient_loss:.3g}{fell}. Image metrics need the private images, "
        "and a low gradient loss alone does not prove that the pictures are right.",
    )


def no_reconstruction(message: str) -> Verdict:
    """The verdict when no seed survived; ``message`` is the outcome of the run."""
    return Verdict(
        Leak.FAILED,
        "No reconstruction",
        f"The attack ended without a result ({message}), so this run says nothing about what leaked.",
    )


def decibels(value: float) -> str:
    """``value`` with one decimal and its unit."""
    return "∞ dB" if value == math.inf else f"{value:.1f} dB"


def _compare_means(psnr_mean: float, floor_mean: float, total: int) -> str:
    mean, others = ("PSNR", "its constant image") if total == 1 else ("Mean PSNR", "constant images")
    start = f"{mean} {decibels(psnr_mean)} against {decibels(floor_mean)} for {others}"
    if not math.isfinite(floor_mean) or math.isnan(psnr_mean):
        return f"{start}."
    gain = psnr_mean - floor_mean
    if gain < MARGIN_DB:
        return f"{start}: {'' if total == 1 else 'on average '}not better than a constant image ({gain:+.1f} dB)."
    return f"{start}: {decibels(gain)} better."

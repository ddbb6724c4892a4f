"""What the numbers mean, in words: a reconstruction counts for what it has above the controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from .figures import decibels

MARGIN_DB = 1.0
"""A reconstruction must beat a control by this much to count as anything."""

CLEAR_DB = 3.0
"""From here on it counts as a leak: the squared error is at most half of the control's."""

FLAT_DB = 20 * math.log10(255 * math.sqrt(12))
"""An image whose constant image comes this close counts as one flat colour: the two differ by no more than rounding to
8 bits does (a root mean square of 1/(255 sqrt 12), 58.9 dB), and a PSNR above that is no picture."""

RULE = (
    f"An image counts as leaked from {CLEAR_DB:g} dB above its own constant image (half its squared error), as weakly "
    f"leaked from {MARGIN_DB:g} dB, and as not better than a constant image below that."
)

STRICT_RULE = (
    f"An image counts as leaked when its reconstruction is at least {CLEAR_DB:g} dB above every control that saw "
    f"nothing of it and the 95 % interval of that lead over the seeds stays above {MARGIN_DB:g} dB, or when it is "
    "recognised in the pool, in the answer and in most seeds, and in no control. It counts as weakly leaked from "
    f"{MARGIN_DB:g} dB with an interval above 0, or from {CLEAR_DB:g} dB whatever the interval. With a single seed "
    "there is no interval, and the plain margins decide. One agent at equal compute saw the image's own gradient, so "
    "it clears nothing: what it alone recovers counts as leaked too."
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


@dataclass(frozen=True)
class Lead:
    """How far a reconstruction is above one control that saw nothing of the image."""

    title: str
    """The control's name for a reader."""
    gain: float
    """Of the answers, in dB."""
    low: float | None = None
    """Lower end of the 95 % interval over the seeds, in dB; None with a single seed."""


def judge_image(psnr: float, floor: float) -> Verdict:
    """The verdict on one image.

    Args:
        psnr: of the reconstruction, in dB.
        floor: PSNR of the constant image, in dB (from ``FLAT_DB`` on the private image counts as one flat colour).
    """
    if math.isnan(psnr):
        return Verdict(Leak.FAILED, "the reconstruction is not finite: nothing to compare")
    if floor >= FLAT_DB:
        return Verdict(Leak.UNKNOWN, "the private image is one flat colour: a constant image is already exact")
    gain = psnr - floor
    if gain >= CLEAR_DB:
        return Verdict(Leak.LEAKED, f"leaked: {decibels(gain)} above a constant image")
    if gain >= MARGIN_DB:
        return Verdict(Leak.WEAK, f"weak leak: {decibels(gain)} above a constant image")
    return Verdict(Leak.NONE, f"not better than a constant image ({gain:+.1f} dB): no leak shown")


def judge_with_controls(
    psnr: float, floor: float, leads: Sequence[Lead], *, recognised: bool = False, alone: float | None = None
) -> Verdict:
    """The verdict on one image against more than the constant image.

    Args:
        psnr: of the reconstruction, in dB.
        floor: PSNR of the constant image, in dB (from ``FLAT_DB`` on the private image counts as one flat colour).
        leads: over every control that saw nothing of the image, at least one.
        recognised: whether it is identified in the pool, in the answer and in most seeds, and in no control.
        alone: smallest lead in dB that one agent at equal compute has over the same controls; None when it was not run.
    """
    if math.isnan(psnr) or floor >= FLAT_DB:
        return judge_image(psnr, floor)
    closest = min(leads, key=lambda lead: lead.gain)
    bounds = [lead for lead in leads if lead.low is not None]
    low = min((lead.low for lead in bounds if lead.low is not None), default=None)
    reason = f"closest control: {closest.title}, {closest.gain:+.1f} dB; " + _scatter_in_words(low)
    if closest.gain >= CLEAR_DB and (low is None or low >= MARGIN_DB):
        return Verdict(Leak.LEAKED, f"leaked: {decibels(closest.gain)} above every control", reason)
    if recognised:
        return Verdict(Leak.LEAKED, "leaked: recognised in the pool, as no control is", reason)
    if alone is not None and alone >= CLEAR_DB:
        found = f"leaked: one agent at equal compute is {decibels(alone)} above every control"
        return Verdict(Leak.LEAKED, found, reason)
    if closest.gain >= CLEAR_DB:
        unsure = f"weak leak: {decibels(closest.gain)} above every control, but the seeds scatter too much"
        return Verdict(Leak.WEAK, unsure, reason)
    if closest.gain >= MARGIN_DB and (low is None or low > 0):
        return Verdict(Leak.WEAK, f"weak leak: {decibels(closest.gain)} above every control", reason)
    if closest.gain >= MARGIN_DB:
        within = f"no leak shown: {closest.gain:+.1f} dB against {closest.title}, within the scatter of the seeds"
        return Verdict(Leak.NONE, within, reason)
    return Verdict(Leak.NONE, f"no leak shown: {closest.title} does as well ({closest.gain:+.1f} dB)", reason)


def _scatter_in_words(low: float | None) -> str:
    if low is None:
        return "one seed, so no interval: the plain margin decides"
    return f"the 95 % interval over the seeds begins at {low:+.1f} dB above the controls"


def judge_batch(
    images: Sequence[Verdict],
    psnr_mean: float,
    floor_mean: float,
    controls: Mapping[str, float] | None = None,
    note: str = "",
) -> Verdict:
    """The verdict on the batch: how many images leaked, then the mean against the floor.

    Args:
        images: the verdict on each image.
        psnr_mean: mean PSNR in dB, over the images that are not of one flat colour.
        floor_mean: mean PSNR in dB of the constant images of the same images.
        controls: mean PSNR in dB of the further controls that decided, by their name for a reader; None when the
            constant image alone did.
        note: which images these means leave out, in a sentence.
    """
    leaks = [image.leak for image in images]
    leaked, weak, total = leaks.count(Leak.LEAKED), leaks.count(Leak.WEAK), len(leaks)
    if Leak.LEAKED not in leaks and Leak.WEAK not in leaks and Leak.NONE not in leaks:
        return Verdict(Leak.FAILED, "Nothing could be compared", note or "No image has a finite PSNR.")
    numbers = _compare_means(psnr_mean, floor_mean, total)
    if note:
        numbers += f" {note}"
    if controls:
        numbers += f" Further controls: {', '.join(f'{name} {decibels(value)}' for name, value in controls.items())}."
    if leaked:
        share = f"All {total}" if leaked == total else f"{leaked} of {total}"
        subject = "The private image" if total == 1 else f"{share} images"
        also = f" {weak} more {'is' if weak == 1 else 'are'} weakly visible." if weak else ""
        return Verdict(Leak.LEAKED, f"{subject} leaked", numbers + also)
    if weak:
        subject = "Weak leak" if total == 1 else f"Weak leak of {weak} of {total} images"
        return Verdict(Leak.WEAK, subject, numbers)
    caution = " That is what this attack at this effort shows; it does not prove that the update is safe."
    bar = "a constant image" if controls is None else "the controls"
    return Verdict(Leak.NONE, f"Not better than {bar}: no image leak shown", numbers + caution)


def no_ground_truth(gradient_loss: float, first_loss: float | None) -> Verdict:
    """The verdict when the private images are not known.

    Args:
        gradient_loss: of the reconstruction.
        first_loss: the mean gradient loss of the agents at their first recorded step, when there is one.
    """
    fell = "" if first_loss is None else f"; the gradient term that the agents minimised began at {first_loss:.3g}"
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


def _compare_means(psnr_mean: float, floor_mean: float, total: int) -> str:
    mean, others = ("PSNR", "its constant image") if total == 1 else ("Mean PSNR", "constant images")
    start = f"{mean} {decibels(psnr_mean)} against {decibels(floor_mean)} for {others}"
    if floor_mean >= FLAT_DB or math.isnan(psnr_mean):
        return f"{start}."
    gain = psnr_mean - floor_mean
    if gain < MARGIN_DB:
        return f"{start}: {'' if total == 1 else 'on average '}not better than a constant image ({gain:+.1f} dB)."
    return f"{start}: {decibels(gain)} better."

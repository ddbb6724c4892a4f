"""Which of the client's images are at risk, in words."""

from __future__ import annotations

import math

from .exposure import DOMINANT, rank_correlation
from .image_result import ImageResult
from .results import AuditReport
from .verdict import Leak

FEWEST_FOR_A_CORRELATION = 4
_EVEN = 1.25
"""Shares whose largest is below so many times the equal one tell the images of a batch hardly apart."""


def risk_sentences(report: AuditReport) -> list[str]:
    """Who leaked, who weighs heavily in the gradient, and whether the two go together in this batch."""
    known = [image for image in report.images if image.gradient_share is not None]
    if not known or len(known) < len(report.images):
        return []
    exposed = [image for image in report.images if image.at_risk]
    unknown = sum(image.verdict.leak in (Leak.UNKNOWN, Leak.FAILED) for image in known)
    sentences = [_exposed(exposed, len(known), unknown), _weights(known)]
    return [sentence for sentence in (*sentences, _together(known)) if sentence]


def is_dominant(image: ImageResult, images: int) -> bool:
    """Whether an image makes far more than its equal share of the batch's gradient norm."""
    return image.gradient_share is not None and image.gradient_share * images >= DOMINANT


def _exposed(images: list[ImageResult], total: int, unknown: int) -> str:
    untold = f" Of {unknown} of {total} images nothing can be told." if unknown else ""
    if not images:
        return f"This attack made none of the images visible.{untold}" if unknown < total else untold.strip()
    words = [f"{image.name} ({_level(image)}, loss {image.loss:.2f}, {image.gradient_share:.0%})" for image in images]
    share = f"{len(images)} of {total} images are"
    if len(images) == total:
        share = "The image is" if total == 1 else "All images are"
    return f"{share} at risk (in brackets: loss, and share of the gradient norm): {', '.join(words)}.{untold}"


def _level(image: ImageResult) -> str:
    if image.by_features:
        return "features leaked"
    return "leaked" if image.verdict.leak is Leak.LEAKED else "weak leak"


def _weights(images: list[ImageResult]) -> str:
    total = len(images)
    if total == 1:
        return ""
    largest = max(image.gradient_share or 0.0 for image in images) * total
    if largest < _EVEN:
        return (
            "All images weigh about the same in the gradient, as on an untrained network: what leaks is then decided "
            "by other things than the loss."
        )
    heavy = [image.name for image in images if is_dominant(image, total)]
    hidden = [image.name for image in images if (image.gradient_share or 0.0) * total < 1 / DOMINANT]
    sentences = []
    if heavy:
        sentences.append(f"Far more than their share of the gradient norm: {', '.join(heavy)}.")
    if hidden:
        sentences.append(f"Far less: {', '.join(hidden)}; from gradient matching alone the average hides these best.")
    return " ".join(sentences)


def _together(images: list[ImageResult]) -> str:
    pairs = [(i.gradient_share, i.loss, i.gain) for i in images if i.gain is not None and math.isfinite(i.gain)]
    if len(pairs) < FEWEST_FOR_A_CORRELATION:
        return ""
    gains = [gain for _, _, gain in pairs if gain is not None]
    shares = [share for share, _, _ in pairs if share is not None]
    losses = [loss for _, loss, _ in pairs if loss is not None]
    by_share, by_loss = rank_correlation(shares, gains), rank_correlation(losses, gains)
    if by_share is None or by_loss is None:
        return ""
    return (
        f"Rank correlation with the PSNR above the constant image, over {len(pairs)} images: share {by_share:+.2f}, "
        f"loss {by_loss:+.2f}; a single batch indicates, it does not prove."
    )

"""One private image in an audit, and what several of them are compared by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..coordinator import Source
from .bit_match import BitMatch
from .verdict import FLAT_DB, Leak, Verdict

UNJUDGED = Verdict(Leak.UNKNOWN, "no ground truth")


@dataclass(frozen=True)
class ControlScore:
    """One control on one private image."""

    psnr: float
    """Of the control's own answer, in dB."""
    seeds: tuple[float, ...] = ()
    """PSNR of each of its seeds' final candidates, in dB; empty for the constant image."""
    position: int | None = None
    """Of the image in the control's answer."""
    ssim: float | None = None
    low: float | None = None
    """95 % interval of the reconstruction's PSNR above the control's, in dB; None with a single seed."""
    high: float | None = None
    identified: bool | None = None
    """Whether the control's image is identified in the pool; None without one."""


@dataclass(frozen=True)
class ImageResult:
    """One row of the audit: a private image and what was made of it. Without ground truth the metrics are None."""

    index: int
    """Position in the private batch (without ground truth: in the reconstruction)."""
    position: int
    """Position of its partner in the reconstruction."""
    name: str
    true_label: int | None
    label: int
    """The recovered label that the partner was optimised for."""
    confidence: float
    """Confidence in that label, in [0, 1]."""
    source: Source
    """Where the pixels came from."""
    agreement: float
    psnr: float | None = None
    constant_image_psnr: float | None = None
    psnr_contrast_apart: float | None = None
    """With the contrast of the batch that fits best, in dB, where batch norm hides it; None elsewhere."""
    ssim: float | None = None
    fft2d: float | None = None
    lpips: float | None = None
    consensus_psnr: float | None = None
    consensus_ssim: float | None = None
    bits: BitMatch | None = None
    """What was recovered to the last bit."""
    plain_mean_psnr: float | None = None
    """Of the mean of the agents' candidates as they stand, in dB."""
    unregistered_psnr: float | None = None
    """Of what the consensus would be without registration, in dB: the same rule, on the candidates as they stand."""
    registration_change: float | None = None
    """Root mean square of the consensus minus the plain mean, pixels in [0, 1]; None with fewer than two candidates."""
    controls: Mapping[str, ControlScore] = field(default_factory=dict)
    """By the name of the control; those that failed or were not run are missing."""
    identified: bool | None = None
    """Whether the reconstruction is identified in the pool; None without one."""
    identified_seeds: int | None = None
    """Of how many seeds the own final candidate is identified."""
    rdlv: float | None = None
    """Relative data leakage value: (SSIM(x^, x) - SSIM(p, x)) / SSIM(p, x), with p the no-gradient control."""
    loss: float | None = None
    """Cross-entropy of the private image at the client's weights, in nats."""
    gradient_norm: float | None = None
    """L2 norm of the gradient of its own loss."""
    gradient_share: float | None = None
    """That norm over the sum of all images', in [0, 1]."""
    verdict: Verdict = UNJUDGED
    by_features: bool = False
    """Whether it counts as leaked by its features alone, without a picture."""

    @property
    def no_gradient_psnr(self) -> float | None:
        """Of the control that never saw the gradient, in dB; None when it was not run."""
        score = self.controls.get("no_gradient")
        return None if score is None else score.psnr

    @property
    def at_risk(self) -> bool:
        """Whether this audit made something of the image visible, or has its features."""
        return self.verdict.leak in (Leak.LEAKED, Leak.WEAK)

    @property
    def flat(self) -> bool:
        """Whether the private image is one flat colour, so that nothing can be told from its PSNR."""
        return self.constant_image_psnr is not None and self.constant_image_psnr >= FLAT_DB

    @property
    def gain(self) -> float | None:
        """PSNR above the constant image, in dB; None where one of the two says nothing."""
        if self.psnr is None or self.constant_image_psnr is None:
            return None
        if math.isnan(self.psnr) or self.flat:
            return None
        return self.psnr - self.constant_image_psnr

    @property
    def consensus_gain(self) -> float | None:
        """PSNR of the consensus above that of the plain mean, in dB: what rule and registration changed together."""
        return _difference(self.consensus_psnr, self.plain_mean_psnr)

    @property
    def registration_gain(self) -> float | None:
        """PSNR of the consensus above that of the same rule without registration, in dB; None where that is unknown."""
        return _difference(self.consensus_psnr, self.unregistered_psnr)

    @property
    def rule_gain(self) -> float | None:
        """PSNR that the rule of the consensus has above the plain mean, both without registration, in dB."""
        return _difference(self.unregistered_psnr, self.plain_mean_psnr)


def compared(images: Sequence[ImageResult]) -> list[ImageResult]:
    """The images that means of PSNR are over: those whose floor is finite; all of them where none has a finite one."""
    return [image for image in images if not image.flat] or list(images)


def means_note(images: Sequence[ImageResult]) -> str:
    """Which images the means of PSNR leave out, and why one of them is no number, in sentences; empty otherwise."""
    over, flat = compared(images), sum(image.flat for image in images)
    sentences = []
    if flat:
        what = "1 image is" if flat == 1 else f"{flat} images are"
        left = f"the means of PSNR and FFT2D are over the other {len(over)}"
        if flat == len(images):
            left = "no mean can be compared"
        sentences.append(f"{what} of one flat colour, which a constant image shows exactly: {left}.")
    exact = sum(image.psnr == math.inf for image in over)
    if exact:
        sentences.append(f"The mean PSNR has no finite value: {exact} of {len(over)} images are recovered to the bit.")
    failed = sum(image.psnr is not None and math.isnan(image.psnr) for image in over)
    if failed:
        sentences.append(f"The mean PSNR is no number: {failed} of {len(over)} reconstructions are not finite.")
    return " ".join(sentences)


def _difference(value: float | None, other: float | None) -> float | None:
    if value is None or other is None:
        return None
    difference = value - other
    return difference if math.isfinite(difference) else None


def mean(values: Iterable[float | None] | None) -> float | None:
    """Of these numbers; None where one of them is not known, or there are none.

    Args:
        values: Numbers, or None where they are not known.
    """
    numbers = list(values or ())
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known and len(known) == len(numbers) else None

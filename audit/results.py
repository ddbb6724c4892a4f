"""The audit report: plain numbers and words, no pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..coordinator import Source
from .bit_match import BitMatch
from .feature_leak import FeatureLeak
from .label_scores import LabelScores
from .matching import Matching
from .verdict import FLAT_DB, Leak, Verdict

CONFIRMED_GAP = 0.002
"""Relative distance between the captured update and the one that the facts make of the private images up to which these
confirm the facts together, those that were assumed too: a wrong one on which anything hangs would show."""

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
class ControlResult:
    """How one control that is an attack ended; its scores are with the images."""

    name: str
    problem: str = ""
    """Why there are no scores, in one sentence."""
    seeds: int = 0
    iterations: int = 0
    gradient_loss: float = math.nan
    seconds: float = 0.0


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


@dataclass(frozen=True)
class AgentResult:
    """How one agent ended. Each agent is matched on its own, so no agent pays for the order of another."""

    seed: int
    incarnation: int
    step: int
    outcome: str
    losses: dict[str, float]
    order: tuple[int, ...]
    """For each row of the report, the position of the partner in this agent's candidate."""
    psnr: tuple[float, ...] | None = None
    """Per row, in dB."""
    ssim: tuple[float, ...] | None = None
    """Per row."""
    identified: tuple[bool, ...] | None = None
    """Per row, whether it is recognised in the pool; None without one."""
    compared: tuple[int, ...] | None = None
    """The rows that its mean is over: those whose floor is finite; all where none is named."""

    @property
    def psnr_mean(self) -> float | None:
        """Mean over the rows that are compared, in dB; None without ground truth."""
        if self.psnr is None or self.compared is None:
            return _mean(self.psnr)
        return _mean(self.psnr[row] for row in self.compared)

    @property
    def ssim_mean(self) -> float | None:
        """Mean over all rows; None without ground truth."""
        return _mean(self.ssim)

    @property
    def iip(self) -> float | None:
        """Share of the private images that are recognised; None without a pool."""
        return None if self.identified is None else _mean(map(float, self.identified))


@dataclass(frozen=True)
class AuditReport:
    """What leaked, against which floor, under which assumptions."""

    images: tuple[ImageResult, ...]
    agents: tuple[AgentResult, ...]
    verdict: Verdict
    matching: Matching | None
    """None without ground truth."""
    consensus_order: tuple[int, ...]
    label_accuracy: float | None
    lpips_note: str
    """Which LPIPS this is, or why there is none."""
    assumptions: tuple[str, ...]
    provenance: dict[str, str]
    rule: str = ""
    """What the verdicts mean, in words."""
    controls: tuple[ControlResult, ...] = ()
    """The controls that are attacks, in the order in which they were run."""
    embedding: str = ""
    """Which features IIP compares; empty without a pool."""
    gallery_size: int | None = None
    """Private images and pool together; None without a pool."""
    pool_note: str = ""
    """Where the pool comes from and what was left out of it, in words; empty without one."""
    label_scores: LabelScores | None = None
    """How right the recovered labels are; None without ground truth."""
    features: FeatureLeak | None = None
    """The features that the attack recovered, held against those of the private images; None where there are none."""
    truth_gap: float | None = None
    """Relative distance between the captured update and the one that its facts make of the private images."""

    @property
    def facts_confirmed(self) -> bool:
        """Whether the private images confirm what was believed of the client, facts that were assumed too."""
        return self.truth_gap is not None and self.truth_gap <= CONFIRMED_GAP

    @property
    def iip(self) -> float | None:
        """Image Identifiability Precision, in [0, 1]: share of the private images identified; None without a pool."""
        return _mean(None if image.identified is None else float(image.identified) for image in self.images)

    @property
    def rdlv_mean(self) -> float | None:
        """Mean relative data leakage value; None where an image has none."""
        return _mean(image.rdlv for image in self.images)

    def control_psnr(self, name: str) -> float | None:
        """Mean PSNR in dB of a control's answer over the images of `psnr_mean`; None when it was not run."""
        scores = [image.controls.get(name) for image in compared(self.images)]
        return _mean(None if score is None else score.psnr for score in scores)

    def control_iip(self, name: str) -> float | None:
        """Image Identifiability Precision of a control; None when it was not run or there is no pool."""
        scores = [image.controls.get(name) for image in self.images]
        flags = [None if score is None else score.identified for score in scores]
        return _mean(None if flag is None else float(flag) for flag in flags)

    def control_ssim(self, name: str) -> float | None:
        """Mean SSIM of a control's answer; None when it was not run."""
        scores = [image.controls.get(name) for image in self.images]
        return _mean(None if score is None else score.ssim for score in scores)

    @property
    def bit_exact(self) -> int | None:
        """How many private images came back bit for bit; None without ground truth."""
        known = [image.bits for image in self.images if image.bits is not None and image.bits.exact_share is not None]
        return sum(one.exact for one in known) if known else None

    @property
    def psnr_mean(self) -> float | None:
        """Mean PSNR of the reconstruction in dB, over the images that are not flat; None without ground truth.

        Every mean of PSNR and of FFT2D is over the same images (`compared`), so that they can be held against each
        other; `means_note` says how many were left out.
        """
        return _mean(image.psnr for image in compared(self.images))

    @property
    def gain_mean(self) -> float | None:
        """Mean PSNR above the constant image in dB; None where nothing can be compared."""
        return _mean(image.gain for image in compared(self.images))

    @property
    def means_note(self) -> str:
        """Which images the means of PSNR leave out, and why one of them is no number, in sentences; empty otherwise."""
        return means_note(self.images)

    @property
    def ssim_mean(self) -> float | None:
        """Mean SSIM of the reconstruction; None without ground truth."""
        return _mean(image.ssim for image in self.images)

    @property
    def fft2d_mean(self) -> float | None:
        """Mean FFT2D of the reconstruction; None without ground truth."""
        return _mean(image.fft2d for image in compared(self.images))

    @property
    def lpips_mean(self) -> float | None:
        """Mean LPIPS of the reconstruction; None when it was not computed."""
        return _mean(image.lpips for image in self.images)

    @property
    def constant_image_psnr(self) -> float | None:
        """The floor: mean PSNR in dB of the constant images, over the images of `psnr_mean`; None without ground truth.

        Infinite where every private image is one flat colour.
        """
        if self.images and all(image.flat for image in self.images):
            return math.inf
        return _mean(image.constant_image_psnr for image in compared(self.images))

    @property
    def consensus_psnr(self) -> float | None:
        """Mean PSNR of the consensus in dB; None without ground truth."""
        return _mean(image.consensus_psnr for image in compared(self.images))

    @property
    def plain_mean_psnr(self) -> float | None:
        """Mean PSNR in dB of the plain mean of the candidates; None without ground truth or with a single candidate."""
        return _mean(image.plain_mean_psnr for image in compared(self.images))

    @property
    def unregistered_psnr(self) -> float | None:
        """Mean PSNR in dB of the consensus rule without registration; None where that is unknown."""
        return _mean(image.unregistered_psnr for image in compared(self.images))

    @property
    def no_gradient_psnr(self) -> float | None:
        """Mean PSNR of the no-gradient control in dB; None when it was not run."""
        return _mean(image.no_gradient_psnr for image in compared(self.images))

    @property
    def agents_psnr_mean(self) -> float | None:
        """Mean over the agents of their mean PSNR in dB; None without ground truth."""
        return _mean(agent.psnr_mean for agent in self.agents)


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


def _mean(values: Iterable[float | None] | None) -> float | None:
    numbers = list(values or ())
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known and len(known) == len(numbers) else None

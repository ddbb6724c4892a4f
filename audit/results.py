"""The audit report: plain numbers and words, no pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .feature_leak import FeatureLeak
from .image_result import ImageResult, compared, mean, means_note
from .label_scores import LabelScores
from .matching import Matching
from .verdict import Verdict

CONFIRMED_GAP = 0.002
"""Relative distance between the captured update and the one that the facts make of the private images up to which these
confirm the facts together, those that were assumed too: a wrong one on which anything hangs would show."""


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
class UsedPlugin:
    """Code of the user's own that the run called."""

    kind: str
    """What it stood in for, such as ``prior``."""
    name: str
    """As the command has it."""
    source: str
    """The file with the beginning of its SHA-256, and what installed it."""


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
            return mean(self.psnr)
        return mean(self.psnr[row] for row in self.compared)

    @property
    def ssim_mean(self) -> float | None:
        """Mean over all rows; None without ground truth."""
        return mean(self.ssim)

    @property
    def iip(self) -> float | None:
        """Share of the private images that are recognised; None without a pool."""
        return None if self.identified is None else mean(map(float, self.identified))


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

    plugins: tuple[UsedPlugin, ...] = ()
    """In the order of their keys."""

    @property
    def facts_confirmed(self) -> bool:
        """Whether the private images confirm what was believed of the client, facts that were assumed too."""
        return self.truth_gap is not None and self.truth_gap <= CONFIRMED_GAP

    @property
    def iip(self) -> float | None:
        """Image Identifiability Precision, in [0, 1]: share of the private images identified; None without a pool."""
        return mean(None if image.identified is None else float(image.identified) for image in self.images)

    @property
    def rdlv_mean(self) -> float | None:
        """Mean relative data leakage value; None where an image has none."""
        return mean(image.rdlv for image in self.images)

    def control_psnr(self, name: str) -> float | None:
        """Mean PSNR in dB of a control's answer over the images of `psnr_mean`; None when it was not run."""
        scores = [image.controls.get(name) for image in compared(self.images)]
        return mean(None if score is None else score.psnr for score in scores)

    def control_iip(self, name: str) -> float | None:
        """Image Identifiability Precision of a control; None when it was not run or there is no pool."""
        scores = [image.controls.get(name) for image in self.images]
        flags = [None if score is None else score.identified for score in scores]
        return mean(None if flag is None else float(flag) for flag in flags)

    def control_ssim(self, name: str) -> float | None:
        """Mean SSIM of a control's answer; None when it was not run."""
        scores = [image.controls.get(name) for image in self.images]
        return mean(None if score is None else score.ssim for score in scores)

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
        return mean(image.psnr for image in compared(self.images))

    @property
    def psnr_contrast_apart(self) -> float | None:
        """The same with the contrast that fits best, in dB, where batch norm hides it; None elsewhere."""
        return mean(image.psnr_contrast_apart for image in compared(self.images))

    @property
    def gain_mean(self) -> float | None:
        """Mean PSNR above the constant image in dB; None where nothing can be compared."""
        return mean(image.gain for image in compared(self.images))

    @property
    def means_note(self) -> str:
        """Which images the means of PSNR leave out, and why one of them is no number, in sentences; empty otherwise."""
        return means_note(self.images)

    @property
    def ssim_mean(self) -> float | None:
        """Mean SSIM of the reconstruction; None without ground truth."""
        return mean(image.ssim for image in self.images)

    @property
    def fft2d_mean(self) -> float | None:
        """Mean FFT2D of the reconstruction; None without ground truth."""
        return mean(image.fft2d for image in compared(self.images))

    @property
    def lpips_mean(self) -> float | None:
        """Mean LPIPS of the reconstruction; None when it was not computed."""
        return mean(image.lpips for image in self.images)

    @property
    def constant_image_psnr(self) -> float | None:
        """The floor: mean PSNR in dB of the constant images, over the images of `psnr_mean`; None without ground truth.

        Infinite where every private image is one flat colour.
        """
        if self.images and all(image.flat for image in self.images):
            return math.inf
        return mean(image.constant_image_psnr for image in compared(self.images))

    @property
    def consensus_psnr(self) -> float | None:
        """Mean PSNR of the consensus in dB; None without ground truth."""
        return mean(image.consensus_psnr for image in compared(self.images))

    @property
    def plain_mean_psnr(self) -> float | None:
        """Mean PSNR in dB of the plain mean of the candidates; None without ground truth or with a single candidate."""
        return mean(image.plain_mean_psnr for image in compared(self.images))

    @property
    def unregistered_psnr(self) -> float | None:
        """Mean PSNR in dB of the consensus rule without registration; None where that is unknown."""
        return mean(image.unregistered_psnr for image in compared(self.images))

    @property
    def no_gradient_psnr(self) -> float | None:
        """Mean PSNR of the no-gradient control in dB; None when it was not run."""
        return mean(image.no_gradient_psnr for image in compared(self.images))

    @property
    def agents_psnr_mean(self) -> float | None:
        """Mean over the agents of their mean PSNR in dB; None without ground truth."""
        return mean(agent.psnr_mean for agent in self.agents)

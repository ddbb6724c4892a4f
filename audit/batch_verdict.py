"""The verdict on the batch: its level from the images' own, and beside it everything that a reader has to know."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from torch import Tensor

from ..coordinator import Reconstruction
from .assumptions import GIVEN_LABELS
from .bits import bit_note
from .comparison import outcome
from .contrast_apart import contrast_note
from .controls import TITLES, Control
from .doubt import Doubt, find_doubts, in_sentences, withhold
from .feature_leak import FeatureLeak
from .features import resolution_note, with_features, with_record
from .image_result import ImageResult, compared, means_note
from .metrics import wrong_labels
from .verdict import Leak, Verdict, judge_batch, no_ground_truth, no_reconstruction


def judge_with_truth(
    reconstruction: Reconstruction,
    results: tuple[ImageResult, ...],
    true_labels: Tensor,
    strict: Mapping[str, float] | None,
    controls: Sequence[Control],
    doubts: Sequence[Doubt],
    features: FeatureLeak | None,
    gallery_size: int | None,
) -> Verdict:
    """The verdict on a batch whose private images are known.

    Args:
        reconstruction: the result of the attack.
        results: the scores of each image, with the verdict on it.
        true_labels: the private labels.
        strict: mean PSNR in dB of the further controls that decided (``deciding_means``); None when there was none.
        controls: every control that was asked for, also those that failed.
        doubts: why "no leak shown" would say too much (``find_doubts``).
        features: the recovered features held against those of the private images; None where there are none.
        gallery_size: images among which the private ones were to be recognised; None without a pool.
    """
    verdict = _tell_controls(_verdict(reconstruction, results, strict), controls)
    verdict = _tell_labels(verdict, reconstruction, true_labels)
    verdict = _tell_likeness(verdict, results, gallery_size)
    if verdict.leak is not Leak.FAILED:
        verdict = replace(verdict, detail=" ".join(filter(None, (verdict.detail, contrast_note(results)))))
    if any(image.bits is not None and image.bits.exact for image in results):
        verdict = replace(verdict, detail=f"{bit_note(results)} {verdict.detail}")
    pictures = sum(image.verdict.leak is Leak.LEAKED for image in results)
    unshown = sum(image.verdict.leak is Leak.NONE for image in results)
    verdict = withhold(verdict, unshown, doubts)
    verdict = with_features(verdict, features, pictures, resolution_note(reconstruction))
    return with_record(verdict, reconstruction, features, True)


def judge_without_truth(reconstruction: Reconstruction) -> Verdict:
    """The verdict where nobody told the private images: nothing is called safe."""
    return with_record(_with_doubts(_verdict(reconstruction, None), reconstruction), reconstruction, None, False)


def _verdict(
    reconstruction: Reconstruction,
    results: tuple[ImageResult, ...] | None,
    controls: Mapping[str, float] | None = None,
) -> Verdict:
    if not reconstruction.candidates:
        return no_reconstruction(reconstruction.outcome.value)
    if results is None:
        first = {row["seed"]: row["gradient"] for row in reversed(reconstruction.history) if "gradient" in row}
        return no_ground_truth(reconstruction.gradient_loss, fmean(first.values()) if first else None)
    over = compared(results)
    floors = [image.constant_image_psnr for image in over if image.constant_image_psnr is not None]
    values = [image.psnr for image in over if image.psnr is not None]
    verdicts, note = [image.verdict for image in results], means_note(results)
    return judge_batch(verdicts, fmean(values), fmean(floors), controls, note)


def _tell_controls(verdict: Verdict, controls: Sequence[Control]) -> Verdict:
    """The verdict with the names of the controls behind it: without them it means little."""
    run = [TITLES[control.name] for control in controls if not outcome(control).problem]
    failed = [TITLES[control.name] for control in controls if outcome(control).problem]
    detail = f"{verdict.detail} Controls run: {', '.join(['constant image', *run])}."
    if failed:
        detail += f" Could not be run: {', '.join(failed)}."
    return replace(verdict, detail=detail)


def _tell_labels(verdict: Verdict, reconstruction: Reconstruction, true: Tensor) -> Verdict:
    """An attack that looks for images of other classes finds nothing for that reason alone."""
    labels = reconstruction.labels
    wrong = wrong_labels(labels.labels.cpu(), true)
    if verdict.leak is not Leak.NONE or not wrong:
        return verdict
    how = "given" if labels.method == GIVEN_LABELS else "recovered"
    caution = (
        f" {wrong} of {len(true)} labels were {how} wrongly, so the attack looked for images of other classes; "
        "a server that knows or guesses the labels may see more (labels=0,1,2 gives them)."
    )
    return replace(verdict, detail=verdict.detail + caution)


def _tell_likeness(verdict: Verdict, results: Sequence[ImageResult], gallery: int | None) -> Verdict:
    """SSIM and recognition beside the PSNR: an image can be plainly recognised whose PSNR is low."""
    similar = [image.ssim for image in results if image.ssim is not None and math.isfinite(image.ssim)]
    if verdict.leak is Leak.FAILED or not similar:
        return verdict
    words = f"{'Mean ' if len(results) > 1 else ''}SSIM {fmean(similar):.2f}"
    if gallery is not None:
        words += (
            f"; recognised among {gallery:,} images: {sum(bool(one.identified) for one in results)} of {len(results)}"
        )
    return replace(verdict, detail=f"{verdict.detail} {words}.")


def _with_doubts(verdict: Verdict, reconstruction: Reconstruction) -> Verdict:
    """Without ground truth nothing is called safe; what may be wrong with the pictures is said all the same."""
    doubts = find_doubts(reconstruction)
    if not doubts or verdict.leak is Leak.FAILED:
        return verdict
    return replace(verdict, detail=f"{verdict.detail} {in_sentences(doubts)}")

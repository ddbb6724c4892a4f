"""From a reconstruction to an audit report. The private images are reachable only from this folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from ..capture import PrivateBatch
from ..capture.batch import require_unit_range
from ..coordinator import Reconstruction
from .assumptions import GIVEN_LABELS, state_assumptions, state_provenance
from .averages import add_averages, candidate_images
from .bits import add_bits, bit_note
from .comparison import deciding_means, hold_against_controls, outcome
from .controls import TITLES, Control
from .doubt import find_doubts, in_sentences, withhold, withhold_from_images
from .exposure import Exposure
from .feature_leak import FeatureLeak
from .features import FEATURE_RULE, with_feature_leaks, with_features, with_record
from .identification import Embedding, Gallery, make_embedding
from .image_result import ImageResult, compared, means_note
from .initialisation import WeightState
from .label_scores import score_labels
from .lpips import LpipsError, load_lpips
from .matching import Matching, assign, match
from .metrics import constant_images, fft2d, label_accuracy, psnr, ssim
from .pool import Pool, describe
from .results import AgentResult, AuditReport
from .verdict import RULE, STRICT_RULE, Leak, Verdict, judge_batch, no_ground_truth, no_reconstruction


def evaluate(
    reconstruction: Reconstruction,
    private: PrivateBatch | None,
    *,
    model_trained: bool | None = None,
    weights: WeightState | None = None,
    lpips_weights: str | Path | None = None,
    controls: Sequence[Control] = (),
    pool: Pool | None = None,
    embedding: Embedding | None = None,
    exposure: Exposure | None = None,
    truth_gap: float | None = None,
    features: FeatureLeak | None = None,
) -> AuditReport:
    """The audit of a reconstruction against the private batch, or without it.

    Args:
        reconstruction: the result of the attack.
        private: the true images in [0, 1] and their labels; None when there is no ground truth, and then no metric.
        model_trained: whether the attacked model had trained weights, as told; None when nobody said.
        weights: what the weights themselves show (``weight_state``); it goes before what was told.
        lpips_weights: an ImageNet backbone file for LPIPS (see ``load_lpips``). Nothing is downloaded.
        controls: what ``run_controls`` handed back; with one that saw nothing of the images the verdict is strict.
        pool: other images among which the private ones are to be recognised; without it there is no IIP.
        embedding: the features to recognise by; ``pixels`` when none is given.
        exposure: loss and gradient norm of each private image (``measure_exposure``).
        truth_gap: how far the captured update is from what its facts make of the private images
            (``measure_truth_gap``); None where that is not known.
        features: the recovered features held against those of the private images (``measure_feature_leak``).

    Raises:
        ValueError: the private batch does not fit the reconstruction, or its pixels are not in [0, 1].
    """
    assumptions = state_assumptions(reconstruction, weights or WeightState.told(model_trained))
    if private is None:
        return _without_ground_truth(reconstruction, assumptions)
    _require_fit(reconstruction, private)
    true, true_labels = private.images.detach().cpu(), private.labels.cpu()
    images, labels = _answer(reconstruction), reconstruction.labels.labels.cpu()
    consensus = reconstruction.consensus.detach().cpu()
    matching = match(images, labels, true, true_labels)
    consensus_order = _order(matching, consensus, true)
    perceptual, lpips_note = _lpips(images[list(matching.order)], true, lpips_weights)
    rows = tuple(
        _row(reconstruction, position, index, private.names[index], int(true_labels[index]))
        for index, position in enumerate(matching.order)
    )
    results = _score(rows, images[list(matching.order)], consensus[list(consensus_order)], true, perceptual)
    results = add_averages(results, reconstruction, consensus_order, true)
    results = add_bits(results, reconstruction, images[list(matching.order)], true)
    rows_compared = tuple(image.index for image in compared(results))
    agents = _agents(reconstruction, matching, true, rows_compared)
    embedding = None if pool is None else embedding or make_embedding("pixels")
    gallery = None if pool is None or embedding is None else Gallery(torch.cat([true, pool.images.to(true)]), embedding)
    pairs = zip(candidate_images(reconstruction), agents, strict=True)
    seeds = [images[list(agent.order)] for images, agent in pairs]
    results = hold_against_controls(results, images[list(matching.order)], seeds, true, controls, gallery)
    if gallery is not None:
        own = zip(agents, seeds, strict=True)
        agents = tuple(replace(agent, identified=gallery.identify(seed)) for agent, seed in own)
    results = _add_exposure(results, exposure)
    strict = deciding_means(results)
    doubts = find_doubts(reconstruction, truth_gap)
    verdict = _tell_controls(_verdict(reconstruction, results, strict), controls)
    accuracy = label_accuracy(labels, true_labels)
    wrong, given = round((1 - accuracy) * len(true_labels)), reconstruction.labels.method == GIVEN_LABELS
    verdict = _tell_labels(verdict, wrong, len(true_labels), given=given)
    verdict = _tell_likeness(verdict, results, None if gallery is None else len(true) + len(pool or ()))
    if any(image.bits is not None and image.bits.exact for image in results):
        verdict = replace(verdict, detail=f"{bit_note(results)} {verdict.detail}")
    pictures = sum(image.verdict.leak is Leak.LEAKED for image in results)
    unshown = sum(image.verdict.leak is Leak.NONE for image in results)
    return AuditReport(
        images=withhold_from_images(with_feature_leaks(results, features), doubts),
        agents=agents,
        verdict=with_record(
            with_features(withhold(verdict, unshown, doubts), features, pictures), reconstruction, features, True
        ),
        matching=matching,
        consensus_order=consensus_order,
        label_accuracy=accuracy,
        label_scores=score_labels(labels, true_labels),
        lpips_note=lpips_note,
        assumptions=assumptions,
        provenance=state_provenance(),
        rule=(RULE if strict is None else STRICT_RULE) + (FEATURE_RULE if features is not None else ""),
        controls=tuple(outcome(control) for control in controls),
        embedding="" if embedding is None else embedding.name,
        gallery_size=None if pool is None else len(true) + len(pool),
        pool_note="" if pool is None else describe(pool),
        truth_gap=truth_gap,
        features=features,
    )


def _add_exposure(results: tuple[ImageResult, ...], exposure: Exposure | None) -> tuple[ImageResult, ...]:
    if exposure is None:
        return results
    columns = zip(results, exposure.losses, exposure.norms, exposure.shares, strict=True)
    return tuple(
        replace(row, loss=loss, gradient_norm=norm, gradient_share=share) for row, loss, norm, share in columns
    )


def _without_ground_truth(reconstruction: Reconstruction, assumptions: tuple[str, ...]) -> AuditReport:
    order = tuple(range(len(reconstruction.images)))
    rows = tuple(_row(reconstruction, i, i, f"image {i + 1}", None) for i in order)
    return AuditReport(
        images=add_bits(add_averages(rows, reconstruction, order, None), reconstruction, _answer(reconstruction), None),
        agents=_agents(reconstruction, None, None),
        verdict=with_record(_with_doubts(_verdict(reconstruction, None), reconstruction), reconstruction, None, False),
        matching=None,
        consensus_order=order,
        label_accuracy=None,
        lpips_note="LPIPS not computed: there is no ground truth",
        assumptions=assumptions,
        provenance=state_provenance(),
    )


def _tell_labels(verdict: Verdict, wrong: int, total: int, *, given: bool) -> Verdict:
    """An attack that looks for images of other classes finds nothing for that reason alone."""
    if verdict.leak is not Leak.NONE or not wrong:
        return verdict
    caution = (
        f" {wrong} of {total} labels were {'given' if given else 'recovered'} wrongly, so the attack looked for images "
        "of other classes; a server that knows or guesses the labels may see more (labels=0,1,2 gives them)."
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


def _answer(reconstruction: Reconstruction) -> Tensor:
    """The images to score: not a number when no seed survived, so that no placeholder earns a PSNR."""
    images = reconstruction.images.detach().cpu()
    return images if reconstruction.candidates else torch.full_like(images, torch.nan)


def _row(reconstruction: Reconstruction, position: int, index: int, name: str, true_label: int | None) -> ImageResult:
    return ImageResult(
        index=index,
        position=position,
        name=name,
        true_label=true_label,
        label=int(reconstruction.labels.labels[position]),
        confidence=float(reconstruction.labels.confidence[position]),
        source=reconstruction.sources[position],
        agreement=float(reconstruction.agreement[position]),
    )


def _score(
    rows: tuple[ImageResult, ...], images: Tensor, consensus: Tensor, true: Tensor, perceptual: list[float | None]
) -> tuple[ImageResult, ...]:
    floors, values = psnr(constant_images(true), true).tolist(), psnr(images, true).tolist()
    similar, spectral = ssim(images, true).tolist(), fft2d(images, true).tolist()
    of_consensus, consensus_like = psnr(consensus, true).tolist(), ssim(consensus, true).tolist()
    return tuple(
        replace(
            row,
            psnr=values[i],
            constant_image_psnr=floors[i],
            ssim=similar[i],
            fft2d=spectral[i],
            lpips=perceptual[i],
            consensus_psnr=of_consensus[i],
            consensus_ssim=consensus_like[i],
        )
        for i, row in enumerate(rows)
    )


def _agents(
    reconstruction: Reconstruction,
    matching: Matching | None,
    true: Tensor | None,
    rows: tuple[int, ...] | None = None,
) -> tuple[AgentResult, ...]:
    results = []
    pairs = zip(reconstruction.candidates, candidate_images(reconstruction), strict=True)
    for candidate, images in pairs:
        order, values, similar = tuple(range(len(images))), None, None
        if matching is not None and true is not None:
            order = _order(matching, images, true)
            values = tuple(psnr(images[list(order)], true).tolist())
            similar = tuple(ssim(images[list(order)], true).tolist())
        results.append(
            AgentResult(
                seed=candidate.seed,
                incarnation=candidate.incarnation,
                step=candidate.step,
                outcome=candidate.outcome.value,
                losses=dict(candidate.losses),
                order=order,
                psnr=values,
                ssim=similar,
                compared=rows,
            )
        )
    return tuple(results)


def _order(matching: Matching, images: Tensor, true: Tensor) -> tuple[int, ...]:
    """The partners of other images than the answer: the same by label, their own by assignment."""
    return matching.order if matching.method == "labels" else assign(images, true)


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


def _lpips(images: Tensor, true: Tensor, weights: str | Path | None) -> tuple[list[float | None], str]:
    nothing: list[float | None] = [None] * len(true)
    if weights is None:
        return nothing, "LPIPS not computed: no weights file given"
    try:
        metric = load_lpips(Path(weights))
        return list(metric(images, true).tolist()), f"LPIPS with the {metric.backbone} backbone of {weights}"
    except LpipsError as error:
        return nothing, f"LPIPS not computed: {error}"


def _require_fit(reconstruction: Reconstruction, private: PrivateBatch) -> None:
    expected, given = tuple(reconstruction.images.shape), tuple(private.images.shape)
    if expected != given:
        raise ValueError(
            f"The private images have shape {given} and the reconstruction {expected}; "
            "give the private batch that made this update."
        )
    require_unit_range(private.images, "the private pixels")

"""From a reconstruction to an audit report. The private images are reachable only from this folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..capture import PrivateBatch, Provenance
from ..capture.batch import require_unit_range
from ..coordinator import Reconstruction
from .assumptions import state_assumptions, state_provenance
from .averages import add_averages, candidate_images
from .batch_verdict import judge_with_truth, judge_without_truth
from .bits import add_bits
from .comparison import deciding_means, hold_against_controls, outcome
from .contrast_apart import add_contrast_apart
from .controls import Control
from .doubt import find_doubts, withhold_from_images
from .exposure import Exposure
from .feature_leak import FeatureLeak
from .features import FEATURE_RULE, with_feature_leaks
from .identification import Embedding, Gallery, make_embedding
from .image_result import ImageResult, compared
from .initialisation import WeightState
from .label_scores import score_labels
from .lpips import LpipsError, load_lpips
from .matching import Matching, assign, match
from .metrics import constant_images, fft2d, label_accuracy, psnr, ssim
from .pool import Pool, describe
from .results import AgentResult, AuditReport
from .verdict import RULE, STRICT_RULE


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
    gallery = None if pool is None else _gallery(private, pool, embedding or make_embedding("pixels"))
    scores = _score_batch(reconstruction, private, controls, gallery, lpips_weights)
    results = _add_exposure(scores.results, exposure)
    labels, true_labels = reconstruction.labels.labels.cpu(), private.labels.cpu()
    doubts = find_doubts(reconstruction, truth_gap)
    strict, searched = deciding_means(results), None if gallery is None else len(gallery)
    verdict = judge_with_truth(reconstruction, results, true_labels, strict, controls, doubts, features, searched)
    return AuditReport(
        images=withhold_from_images(with_feature_leaks(results, features), doubts),
        agents=scores.agents,
        verdict=verdict,
        matching=scores.matching,
        consensus_order=scores.consensus_order,
        label_accuracy=label_accuracy(labels, true_labels),
        label_scores=score_labels(labels, true_labels),
        lpips_note=scores.lpips_note,
        assumptions=assumptions,
        provenance=state_provenance(),
        rule=(RULE if strict is None else STRICT_RULE) + (FEATURE_RULE if features is not None else ""),
        controls=tuple(outcome(control) for control in controls),
        embedding="" if gallery is None else gallery.embedding.name,
        gallery_size=searched,
        pool_note="" if pool is None else describe(pool),
        truth_gap=truth_gap,
        features=features,
    )


@dataclass(frozen=True)
class _Scores:
    """What was measured of each image and each seed, before anything is judged."""

    results: tuple[ImageResult, ...]
    agents: tuple[AgentResult, ...]
    matching: Matching
    consensus_order: tuple[int, ...]
    lpips_note: str


def _score_batch(
    reconstruction: Reconstruction,
    private: PrivateBatch,
    controls: Sequence[Control],
    gallery: Gallery | None,
    lpips_weights: str | Path | None,
) -> _Scores:
    true, true_labels = private.images.detach().cpu(), private.labels.cpu()
    answer, consensus = _answer(reconstruction), reconstruction.consensus.detach().cpu()
    matching = match(answer, reconstruction.labels.labels.cpu(), true, true_labels)
    consensus_order = _order(matching, consensus, true)
    images = answer[list(matching.order)]
    perceptual, lpips_note = _lpips(images, true, lpips_weights)
    rows = tuple(
        _row(reconstruction, position, index, private.names[index], int(true_labels[index]))
        for index, position in enumerate(matching.order)
    )
    results = _score(rows, images, consensus[list(consensus_order)], true, perceptual)
    results = add_contrast_apart(results, reconstruction, images, true)
    results = add_averages(results, reconstruction, consensus_order, true)
    results = add_bits(results, reconstruction, images, true)
    agents = _agents(reconstruction, matching, true, tuple(image.index for image in compared(results)))
    pairs = zip(candidate_images(reconstruction), agents, strict=True)
    seeds = [candidate[list(agent.order)] for candidate, agent in pairs]
    results = hold_against_controls(results, images, seeds, true, controls, gallery)
    if gallery is not None:
        own = zip(agents, seeds, strict=True)
        agents = tuple(replace(agent, identified=gallery.identify(seed)) for agent, seed in own)
    return _Scores(results, agents, matching, consensus_order, lpips_note)


def _gallery(private: PrivateBatch, pool: Pool, embedding: Embedding) -> Gallery:
    true = private.images.detach().cpu()
    return Gallery(torch.cat([true, pool.images.to(true)]), embedding)


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
        verdict=judge_without_truth(reconstruction),
        matching=None,
        consensus_order=order,
        label_accuracy=None,
        lpips_note="LPIPS not computed: there is no ground truth",
        assumptions=assumptions,
        provenance=state_provenance(),
    )


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
    # More may have been read off the update than were told: each that was told is held against the one that it is.
    more = reconstruction.belief.facts.image_count.provenance is Provenance.READ
    if expected[1:] != given[1:] or expected[0] < given[0] or (expected[0] > given[0] and not more):
        raise ValueError(
            f"The private images have shape {given} and the reconstruction {expected}; "
            "give the private batch that made this update."
        )
    require_unit_range(private.images, "the private pixels")

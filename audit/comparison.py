"""A reconstruction held against its controls, image by image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..coordinator import Reconstruction
from .controls import NULL_CONTROLS, TITLES, Control
from .identification import Gallery
from .image_result import ControlScore, ImageResult, compared
from .matching import assign
from .metrics import constant_images, psnr, ssim
from .results import ControlResult
from .verdict import Lead, Verdict, judge_image, judge_with_controls

DRAWS = 2000
"""Bootstrap draws of an interval."""
HIGHEST_DB = 100.0
"""An exact image has an infinite PSNR; differences and means are taken of this instead."""
SMALLEST_SIMILARITY = 0.01
"""RDLV divides by the similarity of the control; below this it would be a number about nothing."""


def hold_against_controls(
    results: tuple[ImageResult, ...],
    images: Float[Tensor, "batch channel height width"],
    seeds: Sequence[Float[Tensor, "batch channel height width"]],
    true: Float[Tensor, "batch channel height width"],
    controls: Sequence[Control],
    gallery: Gallery | None,
) -> tuple[ImageResult, ...]:
    """The results with the scores of every control, the intervals, identification, RDLV and the verdict they lead to.

    Args:
        results: one per private image, with its PSNR.
        images: the answer in the order of the private images, in [0, 1].
        seeds: each seed's own final candidate, in that order, in [0, 1].
        true: the private images, in [0, 1].
        controls: those that were run; the constant image is always there.
        gallery: among which to recognise the private images; None leaves identification out.
    """
    found = score_controls(controls, true, gallery)
    flags = _flags(images, gallery)
    own_flags = [_flags(seed, gallery) for seed in seeds]
    values = [psnr(seed, true).tolist() for seed in seeds]
    control = next((c.reconstruction for c in controls if c.name == "no_gradient" and _has_result(c)), None)
    leakage = [None] * len(results) if control is None else relative_leakage(images, true, control)
    held = []
    for index, result in enumerate(results):
        result = replace(result, controls=found[index], identified=flags[index], rdlv=leakage[index])
        if gallery is not None:
            result = replace(result, identified_seeds=sum(bool(own[index]) for own in own_flags))
        result = compare(result, [value[index] for value in values], controls)
        held.append(replace(result, verdict=judge_beside_controls(result, len(seeds))))
    return tuple(held)


def judge_beside_controls(image: ImageResult, seeds: int) -> Verdict:
    """The verdict on one image: by the constant image alone where no other control decides, else by all of them.

    Args:
        image: with its PSNR and the scores of the controls.
        seeds: how many survived.
    """
    assert image.psnr is not None
    assert image.constant_image_psnr is not None
    scores = {name: score for name, score in image.controls.items() if not math.isnan(score.psnr)}
    deciding = {name: score for name, score in scores.items() if name in NULL_CONTROLS}
    if len(deciding) < 2:
        return judge_image(image.psnr, image.constant_image_psnr)
    leads = [Lead(TITLES[name], _lead(image.psnr, score.psnr), score.low) for name, score in deciding.items()]
    recognised = bool(image.identified) and 2 * (image.identified_seeds or 0) > seeds
    recognised = recognised and not any(score.identified for score in deciding.values())
    one_agent = scores.get("one_agent")
    alone = None if one_agent is None else min(_lead(one_agent.psnr, score.psnr) for score in deciding.values())
    return judge_with_controls(image.psnr, image.constant_image_psnr, leads, recognised=recognised, alone=alone)


def deciding_means(images: Sequence[ImageResult]) -> dict[str, float] | None:
    """Mean PSNR in dB of the controls that decide beside the constant image, by title; None where there is none.

    Over the same images as all means of PSNR (`compared`).
    """
    found = {}
    over = compared(images)
    for name in NULL_CONTROLS[1:]:
        values = [image.controls[name].psnr for image in over if name in image.controls]
        if values and len(values) == len(over) and not any(map(math.isnan, values)):
            found[TITLES[name]] = sum(values) / len(values)
    return found or None


def outcome(control: Control) -> ControlResult:
    """How a control ended, without its pictures."""
    found = control.reconstruction
    if found is None:
        return ControlResult(control.name, control.problem)
    seeds = len(found.candidates)
    if not seeds:
        return ControlResult(control.name, f"it ended without a result ({found.outcome.value})")
    return ControlResult(
        control.name,
        seeds=seeds,
        iterations=found.iterations,
        gradient_loss=found.gradient_loss,
        seconds=found.seconds,
    )


def score_controls(
    controls: Sequence[Control],
    true: Float[Tensor, "batch channel height width"],
    gallery: Gallery | None,
) -> list[dict[str, ControlScore]]:
    """The scores of the controls that have a result, by name, one mapping for each private image.

    Each control, and each of its seeds, is matched in its own favour by the assignment with the least squared error:
    it owes nothing to the labels, and what it is granted makes the verdict stricter.
    """
    flat = constant_images(true)
    columns = zip(psnr(flat, true).tolist(), ssim(flat, true).tolist(), _flags(flat, gallery), strict=True)
    rows = [{"constant_image": ControlScore(floor, ssim=like, identified=flag)} for floor, like, flag in columns]
    for control in controls:
        found = control.reconstruction
        if found is None or not _has_result(control):
            continue
        order = assign(found.images.cpu(), true)
        images = found.images.detach().cpu()[list(order)]
        seeds = [_own_favour(candidate, true) for candidate in found.candidate_images.cpu()]
        flags, similar = _flags(images, gallery), ssim(images, true).tolist()
        for row, value in enumerate(psnr(images, true).tolist()):
            scores = tuple(seed[row] for seed in seeds)
            rows[row][control.name] = ControlScore(value, scores, order[row], similar[row], identified=flags[row])
    return rows


def compare(image: ImageResult, seeds: Sequence[float], controls: Sequence[Control]) -> ImageResult:
    """The image with the interval of its lead over each control.

    Args:
        image: with its PSNR and the scores of the controls.
        seeds: PSNR of each seed's own final candidate on this image, in dB.
        controls: as run: they tell where their pixels came from.
    """
    sources = {control.name: control.reconstruction for control in controls}
    scores = {}
    for name, score in image.controls.items():
        of_seed = _is_of_one_seed(sources.get(name), score.position)
        bounds = lead_interval(
            image.psnr, seeds, score.psnr, score.seeds, image.source.of_one_seed, control_of_one_seed=of_seed
        )
        scores[name] = score if bounds is None else replace(score, low=bounds[0], high=bounds[1])
    return replace(image, controls=scores)


def lead_interval(
    psnr: float | None,
    seeds: Sequence[float],
    control: float,
    control_seeds: Sequence[float],
    of_one_seed: bool = False,
    *,
    control_of_one_seed: bool = False,
) -> tuple[float, float] | None:
    """95 % bootstrap interval of the PSNR of a reconstruction above that of a control, in dB.

    It is centred on the two answers, since the answer is what the attacker has, and as wide as the seeds scatter: seeds
    of both sides are drawn with replacement, as many as went into the answer (one where its pixels come from one seed,
    all where they come from the consensus), and their mean's distance from the mean of all is added. The scatter of
    n seeds is enlarged by sqrt(n / (n - 1)), for n values scatter less around their own mean than around the true one.

    Args:
        psnr: of the answer, in dB.
        seeds: PSNR of each seed's own final candidate, in dB.
        control: PSNR of the control's answer, in dB.
        control_seeds: of its seeds; empty for a control that is the same each time.
        of_one_seed: whether the answer's pixels come from one seed.
        control_of_one_seed: the same of the control.

    Returns:
        Low and high; None with fewer than two finite seeds: one seed does not scatter.
    """
    own = np.asarray([min(value, HIGHEST_DB) for value in seeds if not math.isnan(value)])
    others = np.asarray([min(value, HIGHEST_DB) for value in control_seeds if not math.isnan(value)])
    if psnr is None or math.isnan(psnr) or math.isnan(control) or len(own) < 2:
        return None
    generator = np.random.default_rng(0)
    lead = _lead(psnr, control) + _scatter(own, of_one_seed, generator)
    if len(others) > 1:
        lead = lead - _scatter(others, control_of_one_seed, generator)
    low, high = np.quantile(lead, (0.025, 0.975))
    return float(low), float(high)


def relative_leakage(
    images: Float[Tensor, "batch channel height width"],
    true: Float[Tensor, "batch channel height width"],
    control: Reconstruction,
) -> list[float | None]:
    """The relative data leakage value of each image (Hatamizadeh et al., IEEE TMI 2023) with SSIM as the similarity.

    ``RDLV = (SSIM(x^, x) - SSIM(p, x)) / SSIM(p, x)`` with ``p`` the image that the same attack makes without the
    gradient. 0: the gradient added nothing. None where ``SSIM(p, x)`` is under 0.01 or not a number.

    Args:
        images: the reconstruction in the order of the private images.
        true: the private images.
        control: the no-gradient control.
    """
    prior = control.images.detach().cpu()
    prior = prior[list(assign(prior, true))]
    pairs = zip(ssim(images, true).tolist(), ssim(prior, true).tolist(), strict=True)
    return [(found - base) / base if base >= SMALLEST_SIMILARITY and found == found else None for found, base in pairs]


def _scatter(values: np.ndarray, single: bool, generator: np.random.Generator) -> np.ndarray:
    drawn = generator.choice(values, (DRAWS, 1 if single else len(values))).mean(1)
    return (drawn - values.mean()) * math.sqrt(len(values) / (len(values) - 1))


def _own_favour(images: Tensor, true: Tensor) -> list[float]:
    values: list[float] = psnr(images[list(assign(images, true))], true).tolist()
    return values


def _flags(images: Tensor, gallery: Gallery | None) -> Sequence[bool | None]:
    return [None] * len(images) if gallery is None else gallery.identify(images)


def _is_of_one_seed(control: Reconstruction | None, position: int | None) -> bool:
    return control is not None and position is not None and control.sources[position].of_one_seed


def _has_result(control: Control) -> bool:
    return control.reconstruction is not None and bool(control.reconstruction.candidates)


def _lead(value: float, control: float) -> float:
    return min(value, HIGHEST_DB) - min(control, HIGHEST_DB)

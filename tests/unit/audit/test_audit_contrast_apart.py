"""Where batch norm hides the contrast of the batch, the PSNR stands without it too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from gradinversion.audit import evaluate
from gradinversion.audit.report import to_dict
from gradinversion.capture import PrivateBatch
from gradinversion.coordinator import Reconstruction
from gradinversion.peeling.record import Contrast, PeelingRecord

Attack = Callable[..., tuple[Reconstruction, PrivateBatch]]


def faded(
    attack: Attack, contrast: Contrast, factor: float = 0.5, **changes: Any
) -> tuple[Reconstruction, PrivateBatch]:
    """A reconstruction that is right but for one factor of the whole batch, as the model is given it."""
    made, private = attack(noise=0.0, **changes)
    normal = made.normalisation
    images = normal.invert(factor * normal.apply(private.images))
    record = PeelingRecord((), (), (), (), contrast=contrast)
    return dataclasses.replace(made, images=images, peeling=record), private


@pytest.mark.parametrize("factor", [0.3, 0.7])
def test_a_hidden_contrast_is_taken_apart(attack: Attack, factor: float) -> None:
    report = evaluate(*faded(attack, Contrast.HIDDEN, factor))
    plain = [image.psnr for image in report.images]
    apart = [image.psnr_contrast_apart for image in report.images]
    assert all(value is not None and value < 40 for value in plain)
    assert all(value is not None and value > 100 for value in apart)
    assert "hides one factor, the contrast of the whole batch" in report.verdict.detail
    values = to_dict(report, faded(attack, Contrast.HIDDEN, factor)[0])
    assert values["psnr_contrast_apart"] == report.psnr_contrast_apart


def test_other_errors_stay(attack: Attack) -> None:
    # The noise is no contrast: of an answer that is only noisy nothing is gained.
    made, private = attack(noise=0.05)
    made = dataclasses.replace(made, peeling=PeelingRecord((), (), (), (), contrast=Contrast.HIDDEN))
    for image in evaluate(made, private).images:
        assert image.psnr_contrast_apart == pytest.approx(image.psnr, abs=0.3)


@pytest.mark.parametrize("contrast", [Contrast.SEEN, Contrast.GRID])
def test_nothing_is_said_of_a_contrast_that_is_known(attack: Attack, contrast: Contrast) -> None:
    report = evaluate(*faded(attack, contrast))
    assert {image.psnr_contrast_apart for image in report.images} == {None}
    assert report.psnr_contrast_apart is None
    assert "contrast" not in report.verdict.detail


def test_without_peeling_or_truth_there_is_none(attack: Attack) -> None:
    made, private = faded(attack, Contrast.HIDDEN)
    assert evaluate(made, None).psnr_contrast_apart is None
    assert evaluate(dataclasses.replace(made, peeling=None), private).psnr_contrast_apart is None
    assert evaluate(dataclasses.replace(made, candidates=()), private).psnr_contrast_apart is None

"""A private image of one flat colour: nothing can be told of it, and no mean is lost over it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gradinversion.audit import Control, Leak, evaluate, write_report
from gradinversion.audit.page import render_page
from gradinversion.audit.results import AuditReport
from gradinversion.audit.verdict import FLAT_DB
from gradinversion.capture import PrivateBatch
from gradinversion.coordinator import Reconstruction

Attack = Callable[..., tuple[Reconstruction, PrivateBatch]]


def with_flat(attack: Attack, *places: int, step: float = 0.0) -> tuple[Reconstruction, PrivateBatch]:
    """A batch of four in which some images are flat, but for a step in one half where there is one."""
    _, private = attack(batch=4)
    images = private.images.clone()
    for place in places:
        images[place] = 77 / 255
        images[place, :, :8] += step
    return attack(dataclasses.replace(private, images=images), seeds=3)


def audited(reconstruction: Reconstruction, private: PrivateBatch, *controls: Control) -> AuditReport:
    return evaluate(reconstruction, private, controls=controls)


def test_means_are_over_the_images_with_a_finite_floor(attack: Attack) -> None:
    reconstruction, private = with_flat(attack, 2)
    report = audited(reconstruction, private)
    others = [report.images[row] for row in (0, 1, 3)]
    floor = sum(image.constant_image_psnr or 0.0 for image in others) / 3
    mean = sum(image.psnr or 0.0 for image in others) / 3
    assert report.constant_image_psnr == pytest.approx(floor)
    assert report.psnr_mean == pytest.approx(mean)
    assert report.gain_mean == pytest.approx(mean - floor)
    assert report.agents[0].psnr is not None
    assert report.agents[0].psnr_mean == pytest.approx(sum(report.agents[0].psnr[row] for row in (0, 1, 3)) / 3)
    for name in ("consensus_psnr", "plain_mean_psnr", "fft2d_mean"):
        assert math.isfinite(getattr(report, name))
    assert "against ∞" not in report.verdict.detail
    assert "1 image is of one flat colour, which a constant image shows exactly: the means of PSNR and FFT2D" in (
        report.verdict.detail
    )
    # Each image keeps its own verdict.
    assert [image.verdict.leak for image in report.images] == [Leak.LEAKED, Leak.LEAKED, Leak.UNKNOWN, Leak.LEAKED]
    assert report.verdict.headline == "3 of 4 images leaked"
    assert report.images[2].gain is None


def test_a_black_image_takes_no_mean_with_it(attack: Attack) -> None:
    _, private = attack(batch=4)
    images = private.images.clone()
    images[0] = 0.0
    report = audited(*attack(dataclasses.replace(private, images=images)))
    assert report.fft2d_mean is not None
    assert math.isfinite(report.fft2d_mean)


@pytest.mark.parametrize("step", [0.0, 1e-7, 1e-4, 1 / 255 / 4])
def test_flat_is_what_rounding_to_8_bits_cannot_tell_from_it(attack: Attack, step: float) -> None:
    report = audited(*with_flat(attack, 1, step=step))
    assert report.images[1].flat
    assert report.constant_image_psnr is not None
    assert report.constant_image_psnr < 30


def test_two_grey_levels_are_no_flat_image(attack: Attack) -> None:
    report = audited(*with_flat(attack, 1, step=2 / 255))
    assert not report.images[1].flat
    assert report.images[1].constant_image_psnr == pytest.approx(20 * math.log10(255), abs=0.1)
    assert pytest.approx(58.92, abs=0.01) == FLAT_DB


def test_controls_are_held_against_the_same_images(attack: Attack) -> None:
    reconstruction, private = with_flat(attack, 2)
    blind = attack(private, noise=0.3)[0]
    report = audited(reconstruction, private, Control("no_gradient", blind))
    scores = [report.images[row].controls["no_gradient"].psnr for row in (0, 1, 3)]
    assert report.no_gradient_psnr == pytest.approx(sum(scores) / 3)
    assert report.control_psnr("constant_image") == pytest.approx(report.constant_image_psnr)
    assert f"no gradient {sum(scores) / 3:.1f} dB" in report.verdict.detail


def test_numbers_are_finite_and_the_page_says_what_is_left_out(attack: Attack, tmp_path: Path) -> None:
    reconstruction, private = with_flat(attack, 0, 3)
    report = audited(reconstruction, private)
    write_report(report, reconstruction, private, tmp_path)
    values = json.loads((tmp_path / "report.json").read_text())
    for name in ("psnr_mean", "constant_image_psnr", "gain_mean", "consensus_psnr", "plain_mean_psnr", "fft2d_mean"):
        assert math.isfinite(values[name]), name
    assert values["means_note"].startswith("2 images are of one flat colour")
    assert [image["flat"] for image in values["images"]] == [True, False, False, True]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "over 2 of 4 images" in page
    assert "flat: no floor" in page
    assert "against ∞" not in page
    assert 'class="ruler"' in page


def test_where_all_images_are_flat_nothing_is_compared(attack: Attack) -> None:
    reconstruction, private = with_flat(attack, 0, 1, 2, 3)
    report = audited(reconstruction, private)
    assert report.verdict.leak is Leak.FAILED
    assert report.verdict.headline == "Nothing could be compared"
    assert report.verdict.detail.startswith(
        "4 images are of one flat colour, which a constant image shows exactly: no mean can be compared."
    )
    assert report.constant_image_psnr == math.inf
    assert "∞ dB for" not in render_page(report, reconstruction, private)


def test_an_image_recovered_to_the_bit_says_why_there_is_no_mean(attack: Attack, tmp_path: Path) -> None:
    reconstruction, private = attack()
    images = reconstruction.images.clone()
    images[1] = private.images[1]
    exact = dataclasses.replace(reconstruction, images=images)
    report = audited(exact, private)
    write_report(report, exact, private, tmp_path)
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["psnr_mean"] is None
    assert values["means_note"] == "The mean PSNR has no finite value: 1 of 4 images are recovered to the bit."
    assert torch.isfinite(torch.tensor([image["psnr"] or 0.0 for image in values["images"]])).all()

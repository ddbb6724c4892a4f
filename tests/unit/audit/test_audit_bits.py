from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.audit import Leak, evaluate, write_report
from gradinversion.audit.bits import bit_note
from gradinversion.audit.figures import share_not_rounded_up
from gradinversion.audit.page import render_page
from gradinversion.capture import PrivateBatch
from gradinversion.coordinator import Reconstruction
from gradinversion.peeling.record import (
    DecoderPhotos,
    FoundImages,
    ImagesBy,
    LoosePlaces,
    PeelingRecord,
    RecoveredPlace,
)

Make = Callable[..., tuple[Reconstruction, PrivateBatch]]


def batch(on_grid: tuple[bool, ...]) -> PrivateBatch:
    """Images of noise, on the levels of an 8-bit file or not."""
    images = torch.rand(len(on_grid), 3, 24, 24, generator=torch.Generator().manual_seed(1))
    levels = (255 * images).round() / 255
    images = torch.stack([levels[row] if kept else images[row] for row, kept in enumerate(on_grid)])
    return PrivateBatch(images, torch.arange(len(on_grid)), tuple(f"{row}.png" for row in range(len(on_grid))))


def off(attack: Make, private: PrivateBatch, errors: tuple[float, ...], **changes: Any) -> Reconstruction:
    """A reconstruction whose images are off by so much noise."""
    made, _ = attack(private)
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(private.images.shape, generator=generator) * torch.tensor(errors)[:, None, None, None]
    return dataclasses.replace(made, images=(private.images + noise).clamp(0, 1), **changes)


def test_images_are_counted_against_the_truth_and_the_evidence_stands_beside(attack: Make) -> None:
    private = batch((True, True, False))
    report = evaluate(off(attack, private, (1e-5, 1e-2, 1e-5)), private)
    first, second, third = (image.bits for image in report.images)
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.exact, first.exact_share, first.seen, first.seen_share) == (True, 1, True, 1)
    assert first.cost < 0.1 < first.other_cost
    assert (second.exact, second.seen) == (False, False)
    assert second.exact_share is not None
    assert 0 < second.exact_share < 0.5
    # It was never on the grid: it is not recovered bit for bit, however near it is.
    assert (third.original_on_grid, third.exact, third.seen) == (False, False, False)
    assert report.bit_exact == 1
    note = bit_note(report.images)
    assert note.startswith("Recovered bit for bit: 1 of 3 images;")
    assert "1 was never on the levels of an 8-bit file." in note
    assert "The server can tell it of 1" in note
    assert note in report.verdict.detail


def test_a_batch_that_was_never_on_the_grid_is_said_to_be_so(attack: Make) -> None:
    private = batch((False, False))
    report = evaluate(off(attack, private, (1e-6, 1e-6)), private)
    assert report.bit_exact == 0
    assert bit_note(report.images).startswith("No private image is on the 256 levels")
    assert "bit for bit" not in report.verdict.detail


@pytest.mark.parametrize(("error", "words"), [(1e-5, "2 of 2 images are recovered bit for bit"), (0.05, "no image")])
def test_without_ground_truth_the_evidence_alone_speaks(attack: Make, error: float, words: str) -> None:
    private = batch((True, True))
    reconstruction = off(attack, private, (error, error))
    report = evaluate(reconstruction, None)
    assert report.bit_exact is None
    assert words in bit_note(report.images)
    assert words in render_page(report, reconstruction, None)


def test_an_error_stated_far_smaller_than_the_remainders_is_no_evidence(attack: Make) -> None:
    place = RecoveredPlace("images", "the images", "", (3, 24, 24), "taps", (1e-9, 1e-9))
    record = PeelingRecord(("the taps of conv",), (place,), (), ())
    record = dataclasses.replace(record, found=FoundImages(ImagesBy.EQUATIONS, (1e-9, 1e-9)))
    private = batch((True, True))
    report = evaluate(off(attack, private, (3e-4, 3e-4), peeling=record), None)
    assert [image.bits.seen for image in report.images if image.bits is not None] == [False, False]


def test_page_and_json_tell_bits_and_likeness(attack: Make, tmp_path: Path) -> None:
    private = batch((True, True, True))
    reconstruction = off(attack, private, (1e-5, 1e-5, 1e-2))
    report = evaluate(reconstruction, private)
    page = render_page(report, reconstruction, private)
    assert '<dd>2 of 3</dd><dd class="note">equal in all 8 bits</dd>' in page
    assert page.count("<span>recovered bit for bit</span>") == 2
    assert "<th>exact values</th>" in page
    assert f"SSIM {report.ssim_mean:.2f}" in report.verdict.detail
    write_report(report, reconstruction, private, tmp_path)
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["bit_exact"] == 2
    assert [image["bit_exact"] for image in facts["images"]] == [True, True, False]
    assert facts["images"][0]["bits"]["exact_share"] == 1
    assert facts["images"][0]["consensus_ssim"] is not None
    assert len(facts["agent_results"][0]["ssim"]) == 3
    assert facts["images"][0]["controls"]["constant_image"]["ssim"] is not None


def test_a_share_is_100_only_of_all() -> None:
    assert share_not_rounded_up(1.0) == "100 %"
    assert share_not_rounded_up(0.99999) == "99.9 %"


@pytest.mark.parametrize(("local_steps", "sent"), [(0, "gradient"), (4, "weight delta")])
@pytest.mark.parametrize("truth", [True, False])
def test_features_that_nobody_held_against_the_images_leave_no_calm_verdict(
    attack: Make, truth: bool, local_steps: int, sent: str
) -> None:
    place = RecoveredPlace("relu", "the input of conv", "conv", (8, 4, 4), "taps", (1e-6, 2e-6))
    record = PeelingRecord(("the taps of conv",), (place,), (), (), local_steps=local_steps)
    private = batch((True, True))
    reconstruction = off(attack, private, (0.5, 0.5), peeling=record)
    calm = evaluate(dataclasses.replace(reconstruction, peeling=None), private if truth else None).verdict
    assert calm.leak is (Leak.NONE if truth else Leak.UNKNOWN)
    verdict = evaluate(reconstruction, private if truth else None).verdict
    assert verdict.leak is Leak.UNKNOWN
    start = "No picture" if truth else "No ground truth"
    assert verdict.headline == f"{start}, but the {sent} determines features of every image"
    assert "Whoever holds an image can tell" in verdict.detail


def test_features_of_single_places_leave_no_calm_verdict(attack: Make) -> None:
    loose = LoosePlaces("relu", "the input of project", "project", (240, 2, 2), 32, (1e-5,) * 30)
    record = PeelingRecord((), (), (), (), local_steps=4, loose=loose)
    private = batch((True, True))
    verdict = evaluate(off(attack, private, (0.5, 0.5), peeling=record), private).verdict
    assert verdict.leak is Leak.UNKNOWN
    assert verdict.headline == "No picture, but the weight delta determines features of single places of its visits"
    assert "30 of the 32 places" in verdict.detail
    assert "Whoever holds an image that was in the first step can tell" in verdict.detail
    assert "whether it was in the batch" not in verdict.detail


@pytest.mark.parametrize(
    ("by", "source", "left_out", "words"),
    [
        (ImagesBy.DESCENT, "photos", ("coffee",), "fitted on photos of scikit-image (camera, brick); left out"),
        (ImagesBy.DESCENT, "/data/public", (), "fitted on photos of /data/public (camera, brick)."),
        (ImagesBy.EQUATIONS, "photos", (), ""),
    ],
)
def test_what_a_descent_began_with_is_an_assumption(
    attack: Make, by: ImagesBy, source: str, left_out: tuple[str, ...], words: str
) -> None:
    photos = DecoderPhotos(source, ("camera", "brick"), left_out)
    record = PeelingRecord(("the taps of conv",), (), (), (), found=FoundImages(by, (1e-6, 1e-6)), photos=photos)
    private = batch((True, True))
    reconstruction = off(attack, private, (0.5, 0.5), peeling=record)
    text = " ".join(evaluate(reconstruction, private).assumptions)
    assert ("linear decoder" in text) == bool(words)
    assert words in text
    assert ("coffee" in text) == bool(left_out)


def test_so_is_what_seeds_begin_with(attack: Make) -> None:
    record = PeelingRecord(("the taps of conv",), (), (), (), decoded=True)
    reconstruction, private = attack(peeling=record)
    assert "linear decoder" in " ".join(evaluate(reconstruction, private).assumptions)

"""What the consensus gained is put down to what did it: to the averaging, or to registration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradinversion.agents import Candidate
from gradinversion.audit import evaluate, psnr
from gradinversion.audit.averages import unregistered
from gradinversion.audit.page import render_page
from gradinversion.capture import PrivateBatch, load_images
from gradinversion.coordinator import Reconstruction
from gradinversion.registration import RegistrationConfig, register

Attack = Callable[..., tuple[Reconstruction, PrivateBatch]]


def registered(
    attack: Attack, shift: int = 0, rule: str = "huber", **changes: Any
) -> tuple[Reconstruction, PrivateBatch]:
    """Five seeds, one of them an outlier, shifted against each other, and their consensus as a run makes it."""
    images, names = load_images("photos", 2, 32)
    reconstruction, private = attack(PrivateBatch(images, torch.arange(2), names), seeds=5)
    candidates = []
    for place, candidate in enumerate(reconstruction.candidates):
        images = candidate.images.roll(shift * (place - 2), -1)
        images = images + 0.8 * torch.randn(images.shape, generator=torch.Generator().manual_seed(place)) * (place == 4)
        candidates.append(dataclasses.replace(candidate, images=images))
    return _with_consensus(reconstruction, candidates, rule, changes), private


def _with_consensus(
    reconstruction: Reconstruction, candidates: list[Candidate], rule: str, changes: dict[str, Any]
) -> Reconstruction:
    config = RegistrationConfig(consensus=rule, **changes)
    found = register(torch.stack([candidate.images for candidate in candidates]), config=config)
    row = {"round": 1, "step": 5, "seeds": 5, "rejected": float(found.rejected.float().mean()), "agreement": 0.9}
    return dataclasses.replace(
        reconstruction,
        candidates=tuple(candidates),
        consensus=reconstruction.normalisation.invert(found.images).clamp(0, 1),
        registration=(row,),
        config={"registration": {"method": config.method, "consensus": rule}},
    )


@pytest.mark.parametrize("rule", ["huber", "wiener"])
def test_where_every_warp_was_refused_nothing_is_put_down_to_registration(attack: Attack, rule: str) -> None:
    reconstruction, private = registered(attack, 0, rule, max_displacement=0.0)
    assert reconstruction.registration[-1]["rejected"] == 1.0
    report = evaluate(reconstruction, private)
    for image in report.images:
        assert image.registration_gain == 0.0
        assert image.rule_gain == pytest.approx(image.consensus_gain)
        assert image.rule_gain is not None
        assert image.rule_gain > 0.5
    page = render_page(report, reconstruction, private)
    assert "The guard refused every warp of the last consensus, so registration moved nothing" in page
    assert f"consensus rule ({rule}): {report.images[0].rule_gain:+.1f} dB" in page
    assert "<span>registration: " not in page


def test_the_rule_on_the_candidates_as_they_stand_is_the_consensus_to_the_bit(attack: Attack) -> None:
    reconstruction, _ = registered(attack, 0, "huber", max_displacement=0.0)
    # As if not all warps had been refused, so that the average is made again.
    again = dataclasses.replace(reconstruction, registration=({**reconstruction.registration[0], "rejected": 0.5},))
    found = unregistered(again)
    assert found is not None
    assert torch.allclose(found, reconstruction.consensus, atol=1e-6)


def test_what_registration_gains_is_told_beside_what_the_rule_gains(attack: Attack) -> None:
    reconstruction, private = registered(attack, 1)
    assert reconstruction.registration[-1]["rejected"] < 1.0
    report = evaluate(reconstruction, private)
    standing = unregistered(reconstruction)
    assert standing is not None
    gained = psnr(reconstruction.consensus, private.images) - psnr(standing, private.images)
    assert [image.registration_gain for image in report.images] == pytest.approx(gained.tolist(), abs=1e-6)
    for image in report.images:
        assert image.registration_gain is not None
        assert image.rule_gain is not None
        assert image.registration_gain + image.rule_gain == pytest.approx(image.consensus_gain)
    best = max(report.images, key=lambda image: image.registration_gain or 0.0)
    assert best.registration_gain is not None
    assert best.registration_gain > 1
    page = render_page(report, reconstruction, private)
    assert f"registration: {best.registration_gain:+.1f} dB" in page
    assert "The consensus rule (huber) without registration:" in page


def test_a_run_that_registers_nothing_gains_nothing_by_it(attack: Attack) -> None:
    reconstruction, private = registered(attack, 1, method="none")
    report = evaluate(reconstruction, private)
    assert [image.registration_gain for image in report.images] == [0.0, 0.0]
    page = render_page(report, reconstruction, private)
    assert "Nothing was registered (registration.method=none): each consensus is the plain mean" in page
    assert "What the consensus changed" not in page


def test_a_rule_that_is_not_known_leaves_the_difference_without_a_cause(attack: Attack) -> None:
    reconstruction, private = attack(batch=2)
    report = evaluate(reconstruction, private)
    assert report.unregistered_psnr is None
    assert report.images[0].consensus_gain is not None
    assert "consensus above plain mean: " in render_page(report, reconstruction, private)

"""No verdict of "no leak shown" on the strength of a fact that nobody knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from gradinversion.audit import Leak, evaluate, measure_truth_gap
from gradinversion.audit.doubt import LARGEST_GAP, find_doubts
from gradinversion.audit.page import render_page
from gradinversion.capture import (
    IMAGENET,
    BatchNormMode,
    ClientConfig,
    Normalisation,
    PrivateBatch,
    assumed,
    simulate_client,
    told,
)
from gradinversion.capture.facts import known_facts
from gradinversion.capture.stated import StatedFact, state_facts
from gradinversion.coordinator import Reconstruction

Attack = Callable[..., tuple[Reconstruction, PrivateBatch]]


def stated(contradictions: dict[str, str] | None = None, **facts: object) -> tuple[StatedFact, ...]:
    record = known_facts(4, IMAGENET, BatchNormMode.EVAL, "cross_entropy").stating(**facts)
    return state_facts(record, {"normalisation", "loss_scale"}, contradictions or {})


def nothing_found(attack: Attack, facts: tuple[StatedFact, ...]) -> tuple[Reconstruction, PrivateBatch]:
    """An attack whose images are no better than a flat colour."""
    reconstruction, private = attack()
    flat = torch.full_like(private.images, 0.5)
    return dataclasses.replace(reconstruction, images=flat, consensus=flat, facts=facts), private


def test_where_everything_is_known_finding_nothing_is_said_to_show_nothing(attack: Attack) -> None:
    report = evaluate(*nothing_found(attack, stated()), truth_gap=1e-6)
    assert report.verdict.leak is Leak.NONE
    assert {image.verdict.leak for image in report.images} == {Leak.NONE}


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (stated(normalisation=assumed(IMAGENET)), "nobody told, ImageNet's was assumed"),
        (stated({"loss_scale": "the sum is -3"}), "the sum is -3"),
    ],
)
def test_an_assumed_or_contradicted_fact_withholds_the_verdict(
    attack: Attack, facts: tuple[StatedFact, ...], words: str
) -> None:
    reconstruction, private = nothing_found(attack, facts)
    report = evaluate(reconstruction, private)
    assert report.verdict.leak is Leak.UNKNOWN
    assert report.verdict.headline.startswith("Cannot be told")
    assert words in report.verdict.detail
    assert "told." in report.verdict.detail
    assert {image.verdict.leak for image in report.images} == {Leak.UNKNOWN}
    assert "no leak shown" not in report.verdict.headline
    assert words in render_page(report, reconstruction, private) or "contradicted" in render_page(
        report, reconstruction, private
    )


def test_the_header_does_not_state_a_defence_that_nobody_told(attack: Attack) -> None:
    for facts, said in ((stated(defences=assumed(())), True), (stated(), False)):
        reconstruction, private = nothing_found(attack, facts)
        assert (
            "defence: none (assumed)" in render_page(evaluate(reconstruction, private), reconstruction, private)
        ) == said


def test_an_assumed_fact_on_which_nothing_hangs_withholds_nothing(attack: Attack) -> None:
    report = evaluate(*nothing_found(attack, stated(clients=assumed(1))))
    assert report.verdict.leak is Leak.NONE


def test_a_leak_is_a_leak_whatever_was_assumed_and_the_rest_is_left_open(attack: Attack) -> None:
    reconstruction, private = attack(facts=stated(normalisation=assumed(IMAGENET)))
    assert evaluate(reconstruction, private).verdict.headline == "All 4 images leaked"
    mixed = reconstruction.images.clone()
    mixed[0] = 0.5
    report = evaluate(dataclasses.replace(reconstruction, images=mixed), private)
    assert report.verdict.headline == "3 of 4 images leaked"
    assert "Of one image nothing was shown, and nothing can be told." in report.verdict.detail
    assert [image.verdict.leak for image in report.images].count(Leak.UNKNOWN) == 1


def test_facts_that_do_not_make_the_update_of_the_private_images_withhold_the_verdict(attack: Attack) -> None:
    report = evaluate(*nothing_found(attack, stated()), truth_gap=2 * LARGEST_GAP)
    assert report.verdict.leak is Leak.UNKNOWN
    assert "4% off the captured one" in report.verdict.detail
    assert len(find_doubts(nothing_found(attack, stated())[0], float("nan"))) == 1


def test_without_ground_truth_doubts_are_told_too(attack: Attack) -> None:
    reconstruction, _ = nothing_found(attack, stated(normalisation=assumed(IMAGENET)))
    assert "ImageNet's was assumed" in evaluate(reconstruction, None).verdict.detail


def test_the_gap_is_zero_where_the_facts_are_right_and_large_where_one_is_wrong() -> None:
    update, model, private = simulate_client(ClientConfig(), 0)
    gap = measure_truth_gap(model, private, update)
    assert gap is not None
    assert gap < 1e-4
    wrong = update.stating(normalisation=told(Normalisation((0.5,) * 3, (0.5,) * 3)))
    found = measure_truth_gap(model, private, wrong)
    assert found is not None
    assert found > LARGEST_GAP
    others = dataclasses.replace(private, images=private.images.flip(0))
    found = measure_truth_gap(model, others, update)
    assert found is not None
    assert found > LARGEST_GAP


@pytest.mark.parametrize(
    "settings",
    [
        {"clients": 2, "local_epochs": 1, "local_batch_size": 2, "learning_rate": 0.05},
        {"clients": 2, "local_epochs": 2, "learning_rate": 0.05},
    ],
)
def test_several_clients_with_steps_of_their_own_have_no_gap_either(settings: dict[str, object]) -> None:
    """One client with the batches of all of them makes other steps than each of them."""
    update, model, private = simulate_client(ClientConfig(**settings), 0)  # type: ignore[arg-type]
    assert measure_truth_gap(model, private, update) is None


@pytest.mark.parametrize(
    "settings", [{"defence": "noise:0.1"}, {"defence": "dp_sgd:0.1"}, {"defence": "clip:0.1", "clients": 2}]
)
def test_after_a_defence_that_distorts_there_is_no_gap_to_speak_of(settings: dict[str, object]) -> None:
    update, model, private = simulate_client(ClientConfig(**settings), 0)  # type: ignore[arg-type]
    assert measure_truth_gap(model, private, update) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"local_epochs": 2, "local_batch_size": 2, "learning_rate": 0.05, "momentum": 0.9},
        {"local_epochs": 1, "weight_decay": 0.01},
        {"bn": "train_shared"},
        {"clients": 2, "batch_size": 2},
        {"clients": 2, "batch_size": 2, "local_epochs": 1, "learning_rate": 0.05},
        {"defence": "clip:0.1"},
    ],
)
def test_the_gap_is_small_for_every_honest_client(settings: dict[str, object]) -> None:
    update, model, private = simulate_client(ClientConfig(**settings), 0)  # type: ignore[arg-type]
    gap = measure_truth_gap(model, private, update)
    assert gap is not None
    assert gap < LARGEST_GAP / 4


def test_wrong_labels_are_named_where_nothing_was_found(attack: Attack) -> None:
    reconstruction, private = nothing_found(attack, stated())
    labels = dataclasses.replace(reconstruction.labels, labels=torch.tensor([5, 6, 7, 8]))
    report = evaluate(dataclasses.replace(reconstruction, labels=labels), private)
    assert "4 of 4 labels were recovered wrongly" in report.verdict.detail
    assert "recovered wrongly" not in evaluate(reconstruction, private).verdict.detail


def test_a_limit_of_the_attack_withholds_the_verdict(attack: Attack) -> None:
    reconstruction, private = nothing_found(attack, stated())
    limited = dataclasses.replace(reconstruction, limits=("the loss has no derivative by the pixels",))
    report = evaluate(limited, private)
    assert report.verdict.leak is Leak.UNKNOWN
    assert "The loss has no derivative by the pixels." in report.verdict.detail
    assert report.verdict.headline.endswith("the attack could not search as it should")
    both = dataclasses.replace(limited, facts=stated(normalisation=assumed(IMAGENET)))
    headline = evaluate(both, private).verdict.headline
    assert headline.endswith("the attack could not search as it should, and a fact about the client is not known")


def test_private_images_that_make_the_update_confirm_what_was_assumed(attack: Attack) -> None:
    reconstruction, private = nothing_found(attack, stated(normalisation=assumed(IMAGENET)))
    confirmed = evaluate(reconstruction, private, truth_gap=1e-5)
    assert confirmed.verdict.leak is Leak.NONE
    assert "which confirms them together" in render_page(confirmed, reconstruction, private)
    for gap in (None, LARGEST_GAP / 2):
        assert evaluate(reconstruction, private, truth_gap=gap).verdict.leak is Leak.UNKNOWN
    contradicted, private = nothing_found(attack, stated({"loss_scale": "the sum is -3"}))
    assert evaluate(contradicted, private, truth_gap=1e-5).verdict.leak is Leak.UNKNOWN

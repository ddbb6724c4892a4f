"""From made-up attacks of known quality to reports and verdicts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gradinversion.agents import Outcome
from gradinversion.audit import Control, Leak, evaluate, psnr
from gradinversion.audit.verdict import judge_batch, judge_image
from gradinversion.capture import PrivateBatch, read
from gradinversion.coordinator import Reconstruction

Attack = Callable[..., tuple[Reconstruction, PrivateBatch]]


def test_metrics_and_means(attack: Attack) -> None:
    reconstruction, private = attack(batch=3, seeds=2, size=16, noise=0.05)
    report = evaluate(reconstruction, private)
    direct = psnr(reconstruction.images, private.images)
    assert [image.psnr for image in report.images] == direct.tolist()
    assert report.psnr_mean == pytest.approx(float(direct.mean()))
    assert report.consensus_psnr == pytest.approx(float(psnr(reconstruction.consensus, private.images).mean()))
    per_agent = [float(psnr(images, private.images).mean()) for images in reconstruction.candidate_images]
    assert [agent.psnr_mean for agent in report.agents] == pytest.approx(per_agent)
    assert report.agents_psnr_mean == pytest.approx(sum(per_agent) / 2)
    assert report.label_accuracy == 1.0
    assert report.lpips_note == "LPIPS not computed: no weights file given"
    assert report.images[0].lpips is None
    assert report.verdict.leak is Leak.LEAKED
    assert report.verdict.headline == "All 3 images leaked"


@pytest.mark.parametrize("known", [True, False])
def test_the_consensus_is_held_against_the_plain_mean_of_the_candidates(attack: Attack, known: bool) -> None:
    reconstruction, private = attack(batch=3, seeds=4)
    mean = reconstruction.candidate_images.mean(0)
    report = evaluate(reconstruction, private if known else None)
    change = (reconstruction.consensus - mean).square().flatten(1).mean(1).sqrt()
    assert [image.registration_change for image in report.images] == pytest.approx(change.tolist())
    if known:
        direct = psnr(mean, private.images)
        assert report.plain_mean_psnr == pytest.approx(float(direct.mean()))
        gained = psnr(reconstruction.consensus, private.images) - direct
        assert [image.consensus_gain for image in report.images] == pytest.approx(gained.tolist(), abs=1e-4)
    else:
        assert report.plain_mean_psnr is None
        assert report.images[0].registration_gain is None


def test_a_single_candidate_has_no_plain_mean(attack: Attack) -> None:
    report = evaluate(*attack(seeds=1))
    assert (report.plain_mean_psnr, report.images[0].registration_change) == (None, None)


def test_no_gain_is_told_where_an_image_is_perfect(attack: Attack) -> None:
    reconstruction, private = attack(seeds=2)
    report = evaluate(dataclasses.replace(reconstruction, consensus=private.images), private)
    assert report.images[0].consensus_gain is None


def test_the_floor_is_each_images_own_mean_colour(attack: Attack) -> None:
    reconstruction, private = attack()
    mean_colour = private.images.mean((2, 3), keepdim=True) + torch.zeros_like(private.images)
    report = evaluate(dataclasses.replace(reconstruction, images=mean_colour), private)
    assert report.psnr_mean == pytest.approx(report.constant_image_psnr)
    assert all(image.gain == pytest.approx(0.0) for image in report.images)
    assert "ot better than a constant image" in report.verdict.headline


def test_noise_is_called_not_better_than_a_constant_image(attack: Attack) -> None:
    reconstruction, private = attack(noise=0.7)
    report = evaluate(reconstruction, private)
    assert report.verdict.leak is Leak.NONE
    assert "Not better than a constant image" in report.verdict.headline
    assert "does not prove that the update is safe" in report.verdict.detail
    assert all("not better than a constant image" in image.verdict.headline for image in report.images)


def test_the_no_gradient_control_is_matched_in_its_own_favour(attack: Attack) -> None:
    reconstruction, private = attack()
    turned = dataclasses.replace(reconstruction, images=reconstruction.images.flip(0))
    report = evaluate(reconstruction, private, controls=(Control("no_gradient", turned),))
    assert report.no_gradient_psnr == pytest.approx(report.psnr_mean)
    assert evaluate(reconstruction, private).no_gradient_psnr is None


def test_rows_follow_the_private_order_and_keep_their_facts(attack: Attack) -> None:
    reconstruction, private = attack(batch=4)
    shuffled = PrivateBatch(private.images[[2, 0, 3, 1]], torch.tensor([2, 0, 3, 1]), ("c", "a", "d", "b"))
    report = evaluate(reconstruction, shuffled)
    assert [(image.name, image.true_label, image.position) for image in report.images] == [
        ("c", 2, 2),
        ("a", 0, 0),
        ("d", 3, 3),
        ("b", 1, 1),
    ]
    assert [image.source for image in report.images] == [reconstruction.sources[i] for i in (2, 0, 3, 1)]
    assert min(image.psnr or 0 for image in report.images) > 25


def test_each_agent_is_matched_on_its_own_when_labels_repeat(attack: Attack) -> None:
    reconstruction, private = attack(batch=2, seeds=2)
    first, second = reconstruction.candidates
    swapped = dataclasses.replace(second, images=second.images.flip(0))
    labels = dataclasses.replace(reconstruction.labels, labels=torch.tensor([4, 4]))
    private = dataclasses.replace(private, labels=torch.tensor([4, 4]))
    report = evaluate(dataclasses.replace(reconstruction, candidates=(first, swapped), labels=labels), private)
    assert report.matching is not None
    assert report.matching.method == "assignment"
    assert [agent.order for agent in report.agents] == [(0, 1), (1, 0)]
    assert min(agent.psnr_mean or 0 for agent in report.agents) > 25


def test_without_ground_truth_there_is_no_metric(attack: Attack) -> None:
    reconstruction, _ = attack()
    report = evaluate(reconstruction, None)
    assert report.psnr_mean is None
    assert report.constant_image_psnr is None
    assert report.label_accuracy is None
    assert report.agents_psnr_mean is None
    assert all(image.psnr is None and image.true_label is None for image in report.images)
    assert report.verdict.leak is Leak.UNKNOWN
    assert report.verdict.headline == "No ground truth: judge the pictures and the gradient loss"
    assert "0.0389" in report.verdict.detail


def test_a_run_without_survivors_earns_no_psnr(attack: Attack) -> None:
    _, private = attack()
    reconstruction, _ = attack(candidates=(), images=private.images, outcome=Outcome.ALL_SEEDS_FAILED, seeds=1)
    for batch in (private, None):
        report = evaluate(reconstruction, batch)
        assert report.verdict.leak is Leak.FAILED
        assert Outcome.ALL_SEEDS_FAILED.value in report.verdict.detail
        assert report.agents == ()
    assert math.isnan(evaluate(reconstruction, private).psnr_mean or 0)


def test_assumptions_name_the_generator_whose_images_are_plausible_anyway(attack: Attack) -> None:
    reconstruction = attack()[0]
    plain = "\n".join(evaluate(reconstruction, None).assumptions)
    with_one = dataclasses.replace(reconstruction, config={"agents": {"generator": "my.module:build"}})
    text = "\n".join(evaluate(with_one, None).assumptions)
    assert "within the range of the generator my.module:build" in text
    assert "generator" not in plain


def test_assumptions_name_what_a_reader_must_know(attack: Attack) -> None:
    reconstruction, _ = attack(seeds=3)
    for trained, words in ((True, "trained weights"), (False, "random weights"), (None, "not known")):
        text = "\n".join(evaluate(reconstruction, None, model_trained=trained).assumptions)
        assert words in text
    for words in ("minimum", "Every class occurs at most once.", "3 seeds x 1,000"):
        assert words in text
    assert "total variation 0.05" in text
    assert "Local training" not in text
    told = dataclasses.replace(reconstruction, training="The client made 4 steps.")
    assert "Local training: The client made 4 steps." in evaluate(told, None).assumptions


def test_provenance_has_versions_and_date(attack: Attack) -> None:
    provenance = evaluate(attack()[0], None).provenance
    assert provenance["torch"] == torch.__version__.split("+")[0] or provenance["torch"] == torch.__version__
    assert {"gradinversion", "ray", "python", "date"} <= provenance.keys()


def test_a_batch_of_another_shape_is_refused(attack: Attack) -> None:
    reconstruction, private = attack(batch=4)
    other = PrivateBatch(private.images[:3], private.labels[:3], private.names[:3])
    with pytest.raises(ValueError, match="give the private batch that made this update"):
        evaluate(reconstruction, other)


def test_images_beyond_those_that_were_told_may_have_been_read_off_the_update(attack: Attack) -> None:
    reconstruction, private = attack(batch=4)
    facts = reconstruction.belief.facts.stating(image_count=read(4, "the rank of the gradient"))
    found = dataclasses.replace(reconstruction, belief=dataclasses.replace(reconstruction.belief, facts=facts))
    told = PrivateBatch(private.images[:3], private.labels[:3], private.names[:3])
    report = evaluate(found, told)
    assert [image.name for image in report.images] == list(told.names)
    assert [image.psnr for image in report.images] == [image.psnr for image in evaluate(found, private).images[:3]]


@pytest.mark.parametrize("value", [1.2, -0.1, math.nan])
def test_private_pixels_outside_the_box_are_refused(attack: Attack, value: float) -> None:
    reconstruction, private = attack()
    images = private.images.clone()
    images[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        evaluate(reconstruction, dataclasses.replace(private, images=images))


def test_lpips_that_cannot_be_had_is_a_note_and_not_an_error(attack: Attack, tmp_path: Path) -> None:
    report = evaluate(*attack(), lpips_weights=tmp_path / "missing.pth")
    assert report.lpips_note.startswith("LPIPS not computed: the weights file")
    assert report.lpips_mean is None


@pytest.mark.parametrize(
    ("value", "floor", "leak"),
    [
        (18.0, 15.0, Leak.LEAKED),
        (17.99, 15.0, Leak.WEAK),
        (16.0, 15.0, Leak.WEAK),
        (15.99, 15.0, Leak.NONE),
        (5.0, 15.0, Leak.NONE),
        (math.inf, 15.0, Leak.LEAKED),
        (40.0, math.inf, Leak.UNKNOWN),
        (math.nan, 15.0, Leak.FAILED),
    ],
)
def test_levels_of_one_image(value: float, floor: float, leak: Leak) -> None:
    assert judge_image(value, floor).leak is leak


def test_a_batch_whose_mean_fails_still_names_the_image_that_leaked() -> None:
    images = [judge_image(22.0, 15.0), judge_image(9.0, 15.0), judge_image(9.0, 15.0)]
    verdict = judge_batch(images, 40 / 3, 15.0)
    assert verdict.leak is Leak.LEAKED
    assert verdict.headline == "1 of 3 images leaked"
    assert "on average not better than a constant image" in verdict.detail


def test_weak_leaks_are_not_called_leaks() -> None:
    verdict = judge_batch([judge_image(17.0, 15.0), judge_image(15.0, 15.0)], 16.0, 15.0)
    assert verdict.leak is Leak.WEAK
    assert verdict.headline == "Weak leak of 1 of 2 images"


def test_flat_private_images_leave_nothing_to_compare() -> None:
    verdict = judge_batch([judge_image(50.0, math.inf)], 50.0, math.inf)
    assert verdict.leak is Leak.FAILED

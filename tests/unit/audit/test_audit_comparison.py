"""A reconstruction against its controls: what a control shows too is no leak."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from gradinversion.audit import Control, Leak, Pool, evaluate
from gradinversion.audit.comparison import lead_interval, relative_leakage
from gradinversion.audit.verdict import Lead, judge_batch, judge_with_controls
from gradinversion.capture import PrivateBatch
from gradinversion.coordinator import Reconstruction, Source

Attack = Callable[..., tuple[Reconstruction, PrivateBatch]]


def at_noise(attack: Attack, private: PrivateBatch, noise: float, seeds: int = 4, **changes: object) -> Reconstruction:
    return attack(private, noise=noise, seeds=seeds, **changes)[0]


def without_result(reconstruction: Reconstruction) -> Reconstruction:
    return dataclasses.replace(reconstruction, candidates=())


def test_a_pretty_picture_from_the_priors_alone_is_no_leak(attack: Attack) -> None:
    reconstruction, private = attack(seeds=4, noise=0.05)
    alone = evaluate(reconstruction, private)
    assert alone.verdict.leak is Leak.LEAKED
    report = evaluate(reconstruction, private, controls=(Control("no_gradient", reconstruction),))
    assert [image.verdict.leak for image in report.images] == [Leak.NONE] * 4
    assert report.verdict.headline == "Not better than the controls: no image leak shown"
    assert "no gradient does as well (+0.0 dB)" in report.images[0].verdict.headline
    assert "Controls run: constant image, no gradient." in report.verdict.detail


@pytest.mark.parametrize("name", ["no_gradient", "other_images"])
def test_what_no_control_shows_is_a_leak(attack: Attack, name: str) -> None:
    reconstruction, private = attack(seeds=4, noise=0.03)
    report = evaluate(reconstruction, private, controls=(Control(name, at_noise(attack, private, 0.3)),))
    assert report.verdict.leak is Leak.LEAKED
    for image in report.images:
        score = image.controls[name]
        assert image.psnr is not None
        assert score.low is not None
        assert score.high is not None
        assert 3 < score.low <= image.psnr - score.psnr <= score.high
        assert len(score.seeds) == 4
        assert "leaked: " in image.verdict.headline
        assert "95 % interval" in image.verdict.detail


def test_one_agent_clears_nothing_and_what_it_recovers_counts(attack: Attack) -> None:
    reconstruction, private = attack(seeds=4, noise=0.03)
    blind = Control("no_gradient", at_noise(attack, private, 0.5))
    as_good = Control("one_agent", at_noise(attack, private, 0.02, seeds=1))
    assert evaluate(reconstruction, private, controls=(blind, as_good)).verdict.leak is Leak.LEAKED
    failed = at_noise(attack, private, 0.5)
    report = evaluate(failed, private, controls=(blind, as_good))
    assert report.verdict.leak is Leak.LEAKED
    assert "one agent at equal compute" in report.images[0].verdict.headline
    # Alone it decides nothing: the constant image is the rule then.
    only = evaluate(reconstruction, private, controls=(as_good,))
    assert "leaked: " in only.images[0].verdict.headline
    assert "every control" not in only.images[0].verdict.headline


def test_with_one_seed_there_is_no_interval_and_the_margin_decides(attack: Attack) -> None:
    reconstruction, private = attack(seeds=1, noise=0.03)
    control = Control("no_gradient", at_noise(attack, private, 0.3, seeds=1))
    report = evaluate(reconstruction, private, controls=(control,))
    assert report.verdict.leak is Leak.LEAKED
    assert report.images[0].controls["no_gradient"].low is None
    assert "one seed, so no interval" in report.images[0].verdict.detail
    assert "With a single seed" in report.rule


def test_a_control_that_failed_is_said_and_decides_nothing(attack: Attack) -> None:
    reconstruction, private = attack(seeds=4, noise=0.03)
    lost = at_noise(attack, private, 0.3)
    for control in (Control("other_images", None, "all seeds diverged"), Control("other_images", without_result(lost))):
        report = evaluate(reconstruction, private, controls=(control,))
        assert report.controls[0].problem
        assert "other_images" not in report.images[0].controls
        assert report.verdict.leak is Leak.LEAKED
        assert "Could not be run: other images' gradient." in report.verdict.detail
        assert report.control_psnr("other_images") is None


def test_a_control_that_is_not_finite_decides_nothing(attack: Attack) -> None:
    reconstruction, private = attack(seeds=3, noise=0.03)
    lost = dataclasses.replace(reconstruction, images=torch.full_like(private.images, math.nan))
    report = evaluate(reconstruction, private, controls=(Control("no_gradient", lost),))
    assert report.verdict.leak is Leak.LEAKED
    assert report.images[0].rdlv is None


def test_controls_are_matched_in_their_own_favour(attack: Attack) -> None:
    reconstruction, private = attack(seeds=3)
    candidates = tuple(dataclasses.replace(c, images=c.images.flip(0)) for c in reconstruction.candidates)
    turned = dataclasses.replace(reconstruction, images=reconstruction.images.flip(0), candidates=candidates)
    report = evaluate(reconstruction, private, controls=(Control("other_images", turned),))
    assert report.control_psnr("other_images") == pytest.approx(report.psnr_mean)
    assert [image.controls["other_images"].position for image in report.images] == [3, 2, 1, 0]
    assert min(min(image.controls["other_images"].seeds) for image in report.images) > 25


def test_the_interval_is_centred_on_the_answers_and_wide_as_the_seeds_scatter() -> None:
    low, high = lead_interval(30.0, [24.0, 26.0, 25.0, 25.0], 12.0, [12.0, 12.0]) or (0.0, 0.0)
    assert low < 18.0 < high
    assert high - low < 3
    wide = lead_interval(30.0, [15.0, 35.0, 20.0, 30.0], 12.0, [12.0, 12.0]) or (0.0, 0.0)
    assert wide[1] - wide[0] > 4 * (high - low)
    of_one = lead_interval(30.0, [24.0, 26.0, 25.0, 25.0], 12.0, [12.0, 12.0], True) or (0.0, 0.0)
    assert of_one[1] - of_one[0] > high - low
    both = lead_interval(30.0, [24.0, 26.0, 25.0, 25.0], 12.0, [5.0, 19.0, 9.0, 15.0]) or (0.0, 0.0)
    assert both[1] - both[0] > high - low


def test_the_interval_of_equal_attacks_covers_zero_nearly_always() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        own, others = (20 + torch.randn(2, 4, generator=generator)).double().tolist()
        low, high = lead_interval(sum(own) / 4, own, sum(others) / 4, others) or (1.0, 1.0)
        covered += low <= 0 <= high
    assert covered >= 0.88 * 200


@pytest.mark.parametrize("seeds", [[], [20.0], [20.0, math.nan]])
def test_fewer_than_two_seeds_have_no_interval(seeds: list[float]) -> None:
    assert lead_interval(20.0, seeds, 10.0, [10.0, 11.0]) is None


def test_an_exact_image_has_a_finite_interval() -> None:
    low, high = lead_interval(math.inf, [math.inf, math.inf], 10.0, []) or (0.0, 0.0)
    assert (low, high) == (90.0, 90.0)


def test_rdlv_is_zero_where_the_gradient_added_nothing(attack: Attack) -> None:
    reconstruction, private = attack(noise=0.03)
    images = reconstruction.images
    assert relative_leakage(images, private.images, reconstruction) == [0.0] * 4
    worse = at_noise(attack, private, 0.3)
    assert all(value is not None and value > 0 for value in relative_leakage(images, private.images, worse))
    negative = dataclasses.replace(reconstruction, images=1 - private.images)
    assert relative_leakage(images, private.images, negative) == [None] * 4
    report = evaluate(reconstruction, private, controls=(Control("no_gradient", worse),))
    assert report.rdlv_mean is not None
    assert evaluate(reconstruction, private).rdlv_mean is None


@pytest.mark.parametrize(
    ("gain", "low", "recognised", "alone", "leak"),
    [
        (3.0, 1.0, False, None, Leak.LEAKED),
        (3.0, None, False, None, Leak.LEAKED),
        (3.0, 0.9, False, None, Leak.WEAK),
        (5.0, -2.0, False, None, Leak.WEAK),
        (2.0, 0.1, False, None, Leak.WEAK),
        (2.0, -0.1, False, None, Leak.NONE),
        (0.9, 0.8, False, None, Leak.NONE),
        (-4.0, -5.0, True, None, Leak.LEAKED),
        (-4.0, -5.0, False, 3.0, Leak.LEAKED),
        (-4.0, -5.0, False, 2.9, Leak.NONE),
    ],
)
def test_levels_against_the_controls(
    gain: float, low: float | None, recognised: bool, alone: float | None, leak: Leak
) -> None:
    leads = [Lead("constant image", 10.0, 9.0), Lead("no gradient", gain, low)]
    assert judge_with_controls(20.0, 10.0, leads, recognised=recognised, alone=alone).leak is leak


def test_what_cannot_be_compared_stays_so() -> None:
    leads = [Lead("no gradient", 10.0)]
    assert judge_with_controls(math.nan, 10.0, leads, recognised=True).leak is Leak.FAILED
    assert judge_with_controls(40.0, math.inf, leads).leak is Leak.UNKNOWN


def test_the_batch_names_the_means_of_the_controls() -> None:
    leads = [Lead("constant image", 5.0), Lead("no gradient", 4.0)]
    verdict = judge_batch([judge_with_controls(20.0, 15.0, leads)], 20.0, 15.0, {"no gradient": 16.0})
    assert "Further controls: no gradient 16.0 dB." in verdict.detail


def make_pool(count: int, size: int) -> Pool:
    generator = torch.Generator().manual_seed(5)
    images = torch.nn.functional.interpolate(torch.rand(count, 3, 4, 4, generator=generator), (size, size))
    return Pool(images, tuple(f"other{i}" for i in range(count)), "folder")


def test_a_recognised_image_leaks_whatever_its_psnr(attack: Attack) -> None:
    reconstruction, private = attack(seeds=4, noise=0.01)
    dark = dataclasses.replace(reconstruction, images=0.2 * reconstruction.images)
    pool = make_pool(20, 16)
    others = PrivateBatch(pool.images[:4], private.labels, private.names)
    report = evaluate(dark, private, controls=(Control("other_images", at_noise(attack, others, 0.03)),), pool=pool)
    assert report.iip == 1.0
    assert report.gallery_size == 24
    assert report.images[0].identified_seeds == 4
    assert report.psnr_mean is not None
    assert report.constant_image_psnr is not None
    assert report.psnr_mean < report.constant_image_psnr
    assert {image.verdict.leak for image in report.images} == {Leak.LEAKED}
    assert "recognised in the pool" in report.images[0].verdict.headline
    # A control that is recognised as well takes that away.
    shown = evaluate(dark, private, controls=(Control("no_gradient", dark),), pool=pool)
    assert shown.control_iip("no_gradient") == 1.0
    assert {image.verdict.leak for image in shown.images} == {Leak.NONE}


def test_the_constant_image_is_never_recognised(attack: Attack) -> None:
    reconstruction, private = attack()
    report = evaluate(reconstruction, private, pool=make_pool(20, 16))
    assert report.control_iip("constant_image") == 0.0
    assert "8 x 8" in report.embedding
    assert evaluate(reconstruction, private).iip is None


def test_pixels_of_one_seed_have_the_wider_interval(attack: Attack) -> None:
    reconstruction, private = attack(seeds=4, noise=0.03)
    control = Control("no_gradient", at_noise(attack, private, 0.3))

    def width(source: Source) -> float:
        named = dataclasses.replace(reconstruction, sources=(source,) * 4)
        score = evaluate(named, private, controls=(control,)).images[0].controls["constant_image"]
        assert score.high is not None
        assert score.low is not None
        return score.high - score.low

    assert width(Source(2)) == width(Source(0)) > 1.2 * width(Source())

"""What factors of images mean, in words that are true."""

from __future__ import annotations

import pytest
from gradinversion.peeling.factors import describe, distinct_from_one


@pytest.mark.parametrize(
    ("factors", "error", "found"),
    [
        ([1.0, 1.0], 0.0, ()),
        ([1.0001, 0.9999], 1e-6, ()),
        ([1.02, 0.99], 0.01, ()),
        ([1.02, 0.99], 1e-4, (1.02, 0.99)),
        ([4.0], 0.01, (4.0,)),
    ],
)
def test_factors_of_one_are_none(factors: list[float], error: float, found: tuple[float, ...]) -> None:
    assert distinct_from_one(factors, error) == found


def test_nothing_is_said_of_none() -> None:
    assert describe((), 0.0) == ""


@pytest.mark.parametrize("factor", [4.0, 65536.0])
def test_a_factor_above_one_is_no_clipping(factor: float) -> None:
    said = describe((factor, factor * (1 + 1e-5)), 1e-6)
    assert f"{factor:.3g} times that of the mean loss" in said
    assert "sum over the batch" in said
    assert "clip" not in said


def test_a_common_factor_below_one_may_be_clipping() -> None:
    said = describe((0.25, 0.25), 1e-6)
    assert "0.25 times that of the mean loss" in said
    assert "clipping of the whole" in said
    assert "sum over" not in said


def test_factors_that_differ_are_clipping_image_by_image() -> None:
    said = describe((0.25, 1.0), 1e-6)
    assert "clipped image by image" in said
    assert "0.25 to 1 times" in said


def test_factors_that_differ_and_exceed_one_are_both() -> None:
    said = describe((0.25, 3.0), 1e-6)
    assert "0.25 to 3 times" in said
    assert "clipping image by image, and a factor above 1" in said

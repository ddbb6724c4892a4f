from __future__ import annotations

import math

import pytest
from gradinversion.audit.figures import duration, psnr_in_words, share_in_words


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "–"), (21.04, "21.0 dB"), (-0.96, "-1.0 dB"), (math.inf, "∞ dB"), (math.nan, "not finite")],
)
def test_a_psnr_in_words(value: float | None, words: str) -> None:
    assert psnr_in_words(value) == words


@pytest.mark.parametrize(("value", "words"), [(None, "–"), (0.256, "26%"), (0.0, "0%"), (math.nan, "–")])
def test_a_share_in_words(value: float | None, words: str) -> None:
    assert share_in_words(value) == words


@pytest.mark.parametrize(
    ("seconds", "decimals", "words"),
    [(1.26, 1, "1.3 s"), (1.26, 0, "1 s"), (60, 1, "1 min 0 s"), (3599.4, 0, "59 min 59 s"), (3660, 1, "1 h 1 min")],
)
def test_a_duration(seconds: float, decimals: int, words: str) -> None:
    assert duration(seconds, decimals) == words

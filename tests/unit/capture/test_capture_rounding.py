from __future__ import annotations

import pytest
import torch
from gradinversion.capture import sent_type

NARROW = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("kind", [*NARROW, torch.float32, torch.float64])
@pytest.mark.parametrize("held", [torch.float32, torch.float64])
def test_the_type_that_numbers_were_sent_in_is_seen_in_them(kind: torch.dtype, held: torch.dtype) -> None:
    values = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(kind)
    expected = kind if kind in NARROW else held
    assert sent_type(values.to(held)) is expected
    assert sent_type(values) is kind


@pytest.mark.parametrize("kind", NARROW)
def test_small_numbers_and_large_ones_are_seen_too(kind: torch.dtype) -> None:
    values = torch.tensor([1e-7, 3e-6, 5e4, 1.1, -0.3]).to(kind)
    assert sent_type(values.float()) is kind


@pytest.mark.parametrize("values", [torch.zeros(8), torch.tensor([0.5]), torch.tensor([])])
def test_numbers_that_fit_anywhere_say_nothing(values: torch.Tensor) -> None:
    assert sent_type(values) is torch.float32

"""A loss that is far above both the best and the first one is not coming back."""

from __future__ import annotations

import pytest
import torch
from gradinversion.agents.loss_watch import LossWatch


@pytest.mark.parametrize(
    ("losses", "lost"),
    [
        ([1.0, 0.5, 19.9], False),
        ([1.0, 0.5, 20.1], True),
        ([1.0, 0.01, 0.9], False),  # far above the best alone: it is below where it began
        ([0.01, 0.005, 0.3], True),
        ([5.0], False),
        ([0.0, 0.1], True),
    ],
)
def test_the_last_of_these_losses(losses: list[float], lost: bool) -> None:
    watch = LossWatch()
    assert [watch.diverges(loss) for loss in losses] == [*([False] * (len(losses) - 1)), lost]


def test_a_watch_that_is_continued_remembers_both_losses() -> None:
    watch, again = LossWatch(), LossWatch()
    assert not watch.diverges(1.0)
    assert not watch.diverges(0.5)
    again.restore(watch.state())
    assert torch.equal(again.state(), torch.tensor([1.0, 0.5], dtype=torch.float64))
    assert not again.diverges(15.0)
    assert again.diverges(21.0)

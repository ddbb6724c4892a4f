"""What a checkpoint holds of Gauss-Newton steps: it is read as it was written, or refused."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from gradinversion.agents.gauss_newton_state import STATE_NAMES, GaussNewtonState
from torch import Tensor

_VARIABLES = torch.zeros(2, 3, dtype=torch.float64)
_NUMBERS = (4, 20, 1, True, 7, 1e-5, 2.0, 3.0, 2.5, 4.0, float("inf"))


def _written() -> GaussNewtonState:
    first, second, third = (torch.full_like(_VARIABLES, value) for value in (1, 2, 3))
    return GaussNewtonState(first, second, third, *_NUMBERS)


def test_a_state_is_read_as_it_was_written() -> None:
    written = _written()
    kept = written.tensors()
    assert kept.keys() == STATE_NAMES
    assert kept["finish_counters"].tolist() == [float(number) for number in _NUMBERS]
    read = GaussNewtonState.read(kept, _VARIABLES)
    for field in fields(GaussNewtonState):
        before, after = getattr(written, field.name), getattr(read, field.name)
        assert type(after) is type(before)
        assert torch.equal(after, before) if isinstance(before, Tensor) else after == before
    kept["finish_move"].zero_()  # neither of the two shares memory with the checkpoint
    assert bool(written.move.all())
    assert bool(read.move.all())


def test_a_state_at_the_start_is_one_that_can_be_read() -> None:
    start = GaussNewtonState.at_start(_VARIABLES)
    assert not start.move.any()
    assert GaussNewtonState.read(start.tensors(), _VARIABLES).first == float("inf")


@pytest.mark.parametrize("name", sorted(STATE_NAMES))
def test_a_state_of_other_variables_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        GaussNewtonState.read(_written().tensors() | {name: torch.zeros(7)}, _VARIABLES)


@pytest.mark.parametrize(
    ("place", "value"), [(0, -1.0), (0, 500.0), (1, 1e18), (1, 0.0), (2, float("nan")), (3, 0.5), (5, 1e308)]
)
def test_counters_that_no_run_comes_to_are_refused(place: int, value: float) -> None:
    state = _written().tensors()
    state["finish_counters"][place] = value
    with pytest.raises(ValueError, match="no run could have come to"):
        GaussNewtonState.read(state, _VARIABLES)

"""The number of visits, and of the first step's, as a weight delta shows them."""

import pytest
from gradinversion.peeling.rules.visits_read import standing_out


@pytest.mark.parametrize(
    ("left", "count"),
    [
        ([1e-6, 2e-6, 0.1, 0.2], 2),
        ([1e-6, 0.03, 0.1, 0.2], 1),
        # A factor of a thousand among those that obey is no gap.
        ([1e-7, 1e-4, 2e-4, 0.1], 3),
        # All obey: one step, or steps too small to tell.
        ([1e-6, 2e-6, 3e-6], None),
        ([0.1, 0.2], None),
        # What obeys barely does not stand out.
        ([0.015, 0.03], None),
        ([1e-6], None),
    ],
)
def test_visits_of_the_first_step_stand_out(left: list[float], count: int | None) -> None:
    assert standing_out(left) == count


@pytest.mark.parametrize(
    ("left", "told", "count"),
    [
        # One visit of the first step that is badly known.
        ([1e-6, 0.03, 0.03, 0.04], 2, 2),
        ([1e-6, 2e-6, 3e-6, 0.03], 4, 4),
        # It surely does not obey.
        ([1e-6, 0.2, 0.3, 0.4], 2, 1),
        # Two more do not.
        ([1e-6, 2e-6, 0.03, 0.03, 0.04], 4, 2),
        # Both obey alike.
        ([1e-6, 2e-6, 0.03, 0.03], 1, 2),
        ([1e-7, 1e-4, 2e-4, 0.1], 1, 3),
        # The second step was small.
        ([1e-6, 0.006, 0.02001], 1, 1),
        # None stands out: nothing is read.
        ([1e-6, 2e-6, 3e-6], 2, None),
    ],
)
def test_a_step_that_was_told_stands_unless_another_one_is_clear(left: list[float], told: int, count: int) -> None:
    assert standing_out(left, told) == count

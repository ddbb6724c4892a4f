from __future__ import annotations

import pytest
from gradinversion.benchmarks.pointwise_errors import NETWORKS, cases
from gradinversion.benchmarks.residual_errors import measure


@pytest.mark.parametrize("noise", ["none", "1e-4"])
def test_errors_on_a_phones_network_are_stated_and_true(noise: str) -> None:
    (case,) = cases([1], [NETWORKS[0]], [noise])
    outcome = measure(case)
    assert not outcome.violates
    assert outcome.network == NETWORKS[0]
    # Two images: the rows of the last block and what lies before it.
    assert outcome.steps >= 4 or "2 photos" not in outcome.case

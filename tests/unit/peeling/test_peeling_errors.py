"""The property that everything behind an anchor rests on: its stated error is at least a tenth of the true one."""

from __future__ import annotations

import pytest
from gradinversion.benchmarks.peeling_errors import LABELS, NETWORKS, NOISES, Outcome, make_case, make_model, measure


def _cases(network: str) -> list[tuple[bool, list[int], str, int]]:
    """Each noise with two of the label sets, on random and on trained weights, each time with another seed."""
    return [
        (trained, LABELS[(position + 2 * second + trained) % len(LABELS)], noise, 100 + 7 * position + second)
        for position, noise in enumerate(NOISES)
        for second in (0, 1)
        for trained in (False, True)
    ]


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_stated_is_at_least_a_tenth_of_what_is_true(network: str) -> None:
    models = {(trained, seed): make_model(network, trained, seed) for trained in (False, True) for seed in range(3)}
    found = [
        measure(make_case(network, models[trained, seed % 3], labels, noise, seed))
        for trained, labels, noise, seed in _cases(network)
    ]
    assert [one for one in found if one.violates] == []
    # Refusing everything would pass too.
    assert sum(one.module is not None for one in found) > len(found) / 2
    assert sum(one.stated < 1e-5 for one in found) >= len(found) / 7


@pytest.mark.parametrize(
    ("stated", "activations", "cotangent", "violates"),
    [
        (1e-3, 9e-3, 0.0, False),
        (1e-3, 1.1e-2, 0.0, True),
        (1e-3, 0.0, 1.1e-2, True),
        (0.0, 1e-6, 0.0, False),  # the client's own rounding
        (1e-3, float("nan"), 0.0, True),
    ],
)
def test_what_counts_as_a_violation(stated: float, activations: float, cotangent: float, violates: bool) -> None:
    assert Outcome("", "3", stated, activations, cotangent).violates is violates

"""An input whose derivatives were mended is solved for once more, and what rests on it as it was is forgotten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.graph import Node
from gradinversion.peeling.rules.batch_statistics import behind_batch_statistics
from gradinversion.peeling.rules.knowledge import Knowledge, Known
from gradinversion.peeling.rules.rule import Derived, Setting
from gradinversion.peeling.rules.statistics_again import AGAIN, statistics_again
from gradinversion.peeling.rules.statistics_input import RULE

Cases = Callable[..., Any]
OFF = 0.01


@pytest.fixture
def case(residual_case: Cases, residual_network: Cases) -> Any:
    return residual_case(2, 0, residual_network(0, normed_skips=True), BatchNormMode.TRAIN_PRIVATE)


@pytest.fixture
def value(case: Any) -> str:
    """One that was solved for."""
    return str(next(step.value for step in case.derived().steps if step.rule == RULE))


def convolutions(case: Any, value: str) -> list[Node]:
    """Those that read it, each with a batch norm behind."""
    return [node for node in case.graph.readers(value) if behind_batch_statistics(case.graph, node)]


def as_solved(case: Any, value: str, off: float) -> Knowledge:
    """All that follows, with this input longer by a share, and as if units behind it had been mended."""
    known = case.derived().knowledge
    reader = convolutions(case, value)[0]
    right = known.activations[value].values
    wrong = Known(right * (1 + off), torch.ones_like(right, dtype=torch.bool), off * right.abs(), RULE)
    units = {name: one for name, one in known.units.items() if name != value}
    return replace(known.with_activations(value, wrong), units=units, mended=frozenset({reader.name}))


def asked(case: Any, known: Knowledge) -> list[Derived]:
    return list(statistics_again(Setting(case.graph, case.gradients, len(case.images), 3e-2), known))


def test_its_scale_is_told_anew(case: Any, value: str) -> None:
    known = as_solved(case, value, OFF)
    assert max(case.errors(value, known.activations[value].values)) > OFF / 2
    (found,) = asked(case, known)
    assert (found.rule, found.value, found.notable) == (AGAIN, value, True)
    after = found.knowledge
    true = max(case.errors(value, after.activations[value].values))
    assert true < 1e-4
    assert true < 10 * float(after.activations[value].error.max())
    assert not after.mended
    passed = {node.name for node in convolutions(case, value)} & set(after.arriving)
    assert not passed, "these derivatives passed through the input as it was"
    assert not asked(case, after)


def test_one_that_is_exact_stays_and_is_not_asked_again(case: Any, value: str) -> None:
    known = as_solved(case, value, 1e-6)
    (found,) = asked(case, known)
    assert not found.notable
    assert found.knowledge.activations is known.activations
    assert not found.knowledge.mended


@pytest.mark.parametrize("missing", ["nothing mended", "units settled", "derivative not there yet"])
def test_it_waits_for_what_it_needs(case: Any, value: str, missing: str) -> None:
    known = as_solved(case, value, OFF)
    behind = behind_batch_statistics(case.graph, convolutions(case, value)[-1])
    assert behind is not None
    if missing == "nothing mended":
        known = replace(known, mended=frozenset())
    elif missing == "units settled":
        known = replace(known, units=case.derived().knowledge.units)
    else:
        known = replace(known, arriving={name: one for name, one in known.arriving.items() if name != behind.name})
    assert asked(case, known) == []

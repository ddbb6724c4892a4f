from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradinversion.peeling.refusals import Refused, Why
from gradinversion.peeling.rules import derive
from gradinversion.peeling.rules.effort import Effort

Cases = Callable[..., Any]


def test_operations_count_until_none_are_left() -> None:
    effort = Effort(10.0)
    assert effort.affords(6)
    assert not effort.affords(6)
    assert effort.affords(4)
    assert not effort.affords(1)
    effort.give_back(3)
    assert effort.affords(3)
    assert not effort.affords(1)


def test_what_failed_is_tried_again_only_where_more_is_known() -> None:
    effort, made, given = Effort(), [], object()

    def attempt() -> Refused:
        made.append(1)
        return Refused("rule", "value", Why.INEXACT, error=0.5)

    first = effort.once("rule", "value", (given, None), attempt)
    assert effort.once("rule", "value", (given, None), attempt) is first
    assert len(made) == 1
    effort.once("rule", "other", (given, None), attempt)
    effort.once("rule", "value", (given, object()), attempt)
    assert len(made) == 3


def test_what_succeeds_is_not_kept() -> None:
    effort = Effort()
    found = [effort.once("rule", "value", (), lambda: [1]) for _ in range(2)]
    assert found[0] is not found[1]


def test_with_too_few_operations_a_derivation_says_what_it_left_out(residual_case: Cases) -> None:
    case = residual_case(2)
    nothing = derive(case.graph, case.gradients, 2, 3e-2, operations=1.0)
    assert nothing.steps == ()
    assert {one.why for one in nothing.refused} == {Why.COST}
    whole = case.derived()
    some = derive(case.graph, case.gradients, 2, 3e-2, operations=3e7)
    assert 0 < len(some.steps) < len(whole.steps)
    assert Why.COST in {one.why for one in some.refused}
    assert {step.value for step in some.steps} < {step.value for step in whole.steps}

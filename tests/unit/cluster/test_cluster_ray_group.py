"""The group over Ray, as far as it needs no Ray: the order that a process gets which is lost on its way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gradinversion.capture import LabelError, ModelError, UpdateError
from gradinversion.cluster.ray_group import RayGroup
from gradinversion.cluster.resources import Share
from gradinversion.coordinator import AttackConfig, Leg, Order, Origin, StateFile
from ray.exceptions import RayTaskError

STATE = StateFile("checkpoints/round-000000/seed-0.w.safetensors", "0" * 64, 9, step=10)
SENT = Order(1, Origin((1, 1), 0), (Leg(0, 10), Leg(1, 20)), save=1)
LATER = Order(1, Origin((1, 1), 10, STATE), (Leg(1, 20),))


@pytest.fixture
def group() -> RayGroup:
    group = RayGroup(AttackConfig(), Share(1.0, 0.0, 1), "run", False, None)
    group._orders[0] = SENT
    return group


def test_an_order_begins_from_the_newer_state_and_keeps_what_it_owes(group: RayGroup) -> None:
    group.renew(0, LATER)
    assert group._orders[0] == replace(LATER, save=1)


@pytest.mark.parametrize(
    "order",
    [
        replace(LATER, origin=replace(LATER.origin, stint=(1, 2))),
        replace(LATER, legs=(Leg(2, 30),)),
        replace(LATER, origin=replace(LATER.origin, step=0)),
    ],
    ids=["another stint", "another round", "no further"],
)
def test_an_order_that_is_not_the_same_one_from_further_on_is_not_taken(group: RayGroup, order: Order) -> None:
    group.renew(0, order)
    assert group._orders[0] == SENT


def test_an_agent_without_an_order_gets_none(group: RayGroup) -> None:
    group.renew(1, LATER)
    assert 1 not in group._orders


@pytest.mark.parametrize("error", [ModelError("a model"), UpdateError("an update"), LabelError("labels")])
def test_what_an_agent_refuses_is_not_tried_again(group: RayGroup, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        group._failed(0, RayTaskError("run_round", "", error))
    assert group._failures == {}

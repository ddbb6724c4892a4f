"""What each agent gets of a cluster."""

from __future__ import annotations

import pytest
from gradinversion.agents import AgentsConfig
from gradinversion.cluster import allot
from gradinversion.cluster.resources import Allotment


def test_cpus_are_shared_evenly_where_there_is_no_gpu() -> None:
    found = allot(AgentsConfig(count=4), {"CPU": 2.0})
    assert (found.cpus, found.gpus, found.threads, found.message) == (0.5, 0.0, 1, None)


def test_many_cpus_become_threads_not_reservations() -> None:
    found = allot(AgentsConfig(count=2), {"CPU": 16.0})
    assert (found.cpus, found.threads) == (1.0, 8)


@pytest.mark.parametrize("count", [1, 3, 7, 64, 150])
def test_all_agents_fit(count: int) -> None:
    found = allot(AgentsConfig(count=count), {"CPU": 2.0, "GPU": 1.0})
    assert found.cpus * count <= 2.0 + 1e-9 or found.cpus == 0.01
    assert found.gpus * count <= 1.0 + 1e-9


def test_each_agent_has_its_own_gpu_where_there_are_enough() -> None:
    assert allot(AgentsConfig(count=4), {"CPU": 8.0, "GPU": 8.0}).gpus == 1.0


def test_too_few_gpus_are_shared_with_a_message() -> None:
    found = allot(AgentsConfig(count=4), {"CPU": 8.0, "GPU": 2.0})
    assert found.gpus == 0.5
    assert found.message is not None
    assert "2 GPUs" in found.message


def test_wishes_are_kept() -> None:
    found = allot(AgentsConfig(count=2, gpus=0.25, cpus=0.5, threads=3), {"CPU": 8.0, "GPU": 1.0})
    assert (found.cpus, found.gpus, found.threads) == (0.5, 0.25, 3)


# A cluster that may grow.


@pytest.mark.parametrize("available", [{"CPU": 4.0}, {"CPU": 4.0, "GPU": 2.0}, {}])
def test_on_a_cluster_that_grows_wishes_are_never_cut(available: dict[str, float]) -> None:
    found = allot(AgentsConfig(count=8, gpus=1), available, elastic=True)
    assert (found.cpus, found.gpus, found.threads, found.message) == (1.0, 1.0, 1, None)
    assert allot(AgentsConfig(count=8, gpus=0.25, cpus=2, threads=4), available, elastic=True) == Allotment(
        2.0, 0.25, 4
    )


def test_without_a_wish_gpus_are_taken_where_there_are_some() -> None:
    assert allot(AgentsConfig(count=8), {"CPU": 4.0, "GPU": 1.0}, elastic=True).gpus == 1.0
    assert allot(AgentsConfig(count=8), {"CPU": 4.0}, elastic=True).gpus == 0.0
    assert allot(AgentsConfig(count=8, gpus=None), {"CPU": 4.0}).gpus == 0.0
    assert allot(AgentsConfig(count=8, gpus=0), {"CPU": 4.0, "GPU": 8.0}, elastic=True).gpus == 0.0


def test_a_cluster_of_cpus_is_shared_evenly_also_where_it_may_grow() -> None:
    assert allot(AgentsConfig(count=4), {"CPU": 2.0}, elastic=True) == allot(AgentsConfig(count=4), {"CPU": 2.0})


@pytest.mark.parametrize("gpus", [0.5, 3.0])
def test_gpus_that_there_are_not_become_cpus_with_a_message(gpus: float) -> None:
    found = allot(AgentsConfig(count=2, gpus=gpus), {"CPU": 4.0})
    assert found.gpus == 0.0
    assert found.message is not None
    assert f"agents.gpus={gpus:g}" in found.message


@pytest.mark.parametrize(
    ("found", "available", "room"),
    [
        (Allotment(1.0, 1.0, 1), {"CPU": 8.0, "GPU": 3.0}, 3),
        (Allotment(1.0, 1.0, 1), {"CPU": 2.0, "GPU": 3.0}, 2),
        (Allotment(1.0, 1.0, 1), {"CPU": 8.0}, 0),
        (Allotment(1.0, 0.25, 1), {"CPU": 80.0, "GPU": 3.0}, 12),
        (Allotment(0.5, 0.0, 1), {"CPU": 3.9}, 7),
        (Allotment(1 / 3, 0.0, 1), {"CPU": 1.0}, 3),
        (Allotment(0.1, 0.1, 1), {"CPU": 0.3, "GPU": 0.7}, 3),  # 0.3 / 0.1 is a little less than 3
        (Allotment(0.33, 0.0, 1), {"CPU": 0.98}, 2),
        (Allotment(1.0, 0.0, 1), {}, 0),
        (Allotment(1.0, 0.0, 1), {"GPU": 4.0, "memory": 1e9}, 0),
    ],
)
def test_for_how_many_agents_there_is_room(found: Allotment, available: dict[str, float], room: int) -> None:
    assert found.room(available) == room


def test_who_needs_nothing_always_has_room() -> None:
    assert Allotment(0.0, 0.0, 1).room({}) >= 10_000


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8, 16, 64])
@pytest.mark.parametrize("available", [{"CPU": 2.0}, {"CPU": 2.0, "GPU": 1.0}, {"CPU": 3.0, "GPU": 2.0}])
def test_on_a_machine_of_fixed_size_there_is_room_for_all(count: int, available: dict[str, float]) -> None:
    assert allot(AgentsConfig(count=count), available).room(available) >= count


def test_before_any_node_has_come_each_agent_asks_for_a_cpu() -> None:
    found = allot(AgentsConfig(count=4), {"CPU": 0.0}, elastic=True)
    assert (found.cpus, found.room({"CPU": 0.0})) == (1.0, 0)

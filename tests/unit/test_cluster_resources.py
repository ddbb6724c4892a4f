"""What each agent gets of a cluster."""

from __future__ import annotations

import pytest
from gradinversion.agents import AgentsConfig
from gradinversion.cluster import share


def test_cpus_are_shared_evenly_where_there_is_no_gpu() -> None:
    found = share(AgentsConfig(count=4), {"CPU": 2.0})
    assert (found.cpus, found.gpus, found.threads, found.message) == (0.5, 0.0, 1, None)


def test_many_cpus_become_threads_not_reservations() -> None:
    found = share(AgentsConfig(count=2), {"CPU": 16.0})
    assert (found.cpus, found.threads) == (1.0, 8)


@pytest.mark.parametrize("count", [1, 3, 7, 64, 150])
def test_all_agents_fit(count: int) -> None:
    found = share(AgentsConfig(count=count), {"CPU": 2.0, "GPU": 1.0})
    assert found.cpus * count <= 2.0 + 1e-9 or found.cpus == 0.01
    assert found.gpus * count <= 1.0 + 1e-9


def test_each_agent_has_its_own_gpu_where_there_are_enough() -> None:
    assert share(AgentsConfig(count=4), {"CPU": 8.0, "GPU": 8.0}).gpus == 1.0


def test_too_few_gpus_are_shared_with_a_message() -> None:
    found = share(AgentsConfig(count=4), {"CPU": 8.0, "GPU": 2.0})
    assert found.gpus == 0.5
    assert found.message is not None
    assert "2 GPUs" in found.message


def test_wishes_are_kept() -> None:
    found = share(AgentsConfig(count=2, gpus=0.25, cpus=0.5, threads=3), {"CPU": 8.0, "GPU": 1.0})
    assert (found.cpus, found.gpus, found.threads) == (0.5, 0.25, 3)

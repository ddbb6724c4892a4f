"""The simulated agents of the cluster's benchmark, under the real coordinator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gradinversion.agents import Outcome
from gradinversion.benchmarks.cluster_attack import TINY, make_attack
from gradinversion.benchmarks.cluster_simulation import SimulatedGroup
from gradinversion.coordinator import Coordinator, Reconstruction, Storage

AGENTS, ROUNDS = 5, 3


@pytest.fixture
def run(tmp_path: Path) -> tuple[SimulatedGroup, Reconstruction]:
    update, model, config = make_attack(TINY, tmp_path, AGENTS, ROUNDS)
    storage = Storage(tmp_path)
    group = SimulatedGroup(config, storage, TINY.images, (TINY.images, 3, TINY.side, TINY.side))
    try:
        return group, Coordinator(update, model, config, group, storage).run()
    finally:
        group.close()


def test_simulated_agents_make_all_rounds_and_their_costs_are_counted(
    run: tuple[SimulatedGroup, Reconstruction],
) -> None:
    group, result = run
    assert (result.outcome, result.rounds) == (Outcome.FINISHED, ROUNDS)
    assert [row["seeds"] for row in result.registration] == [AGENTS] * ROUNDS
    costs = group.costs
    assert len(costs.consensus) == ROUNDS
    assert len(costs.processor) == len(costs.rounds) >= ROUNDS
    # In parts only the consensus comes here, not the candidates.
    assert costs.received == [TINY.batch_bytes] * ROUNDS


def test_simulated_agents_all_have_the_same_images(run: tuple[SimulatedGroup, Reconstruction]) -> None:
    _, result = run
    assert torch.equal(result.candidates[0].images, result.candidates[-1].images)
    assert result.agreement.min() > 0.99

"""The coordinator over a group in this process: rounds, consensus, resume, failures."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from gradinversion.agents import AgentsConfig, Outcome
from gradinversion.capture import CapturedUpdate, LabelError
from gradinversion.coordinator import (
    AllSeedsFailedError,
    AttackConfig,
    CheckpointError,
    Coordinator,
    EventKind,
    Level,
    Order,
    Phase,
    Reconstruction,
    Storage,
    StorageError,
)
from gradinversion.coordinator.saving import METRICS_VERSION
from torch import nn


def attack(
    serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig, out: Path | None = None, **more: Any
) -> Reconstruction:
    storage = Storage(out) if out is not None else None
    return Coordinator(update, model, config, serial(config, storage), storage, **more).run()


def test_a_run_ends_with_a_reconstruction_of_its_rounds(
    serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig, tmp_path: Path
) -> None:
    result = attack(serial, update, model, config, out=tmp_path)
    assert result.outcome is Outcome.FINISHED
    assert result.rounds == 4
    assert result.iterations == 40
    assert result.images.shape == (3, 3, 8, 8)
    assert float(result.images.min()) >= 0
    assert float(result.images.max()) <= 1
    assert [row["step"] for row in result.registration] == [20, 30, 40]
    assert len(result.sources) == 3
    assert result.labels.labels.tolist() == [0, 1, 3]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"schema_version": METRICS_VERSION} | row for row in result.history]
    schema = json.loads(resources.files("gradinversion.coordinator").joinpath("metrics.schema.json").read_text())
    for row in rows:
        jsonschema.validate(row, schema)
    assert {row["seed"] for row in rows} == {0, 1, 2}
    assert max(row["step"] for row in rows) == 40


def test_agents_are_given_a_consensus_only_from_its_start_on(
    serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig
) -> None:
    group = serial(config)
    Coordinator(update, model, config, group).run()
    legs = [order.current for orders in group.rounds for order in orders.values()]
    assert [leg.until_step for leg in legs[::3]] == [10, 20, 30, 40]
    assert [leg.consensus is None for leg in legs[::3]] == [True, True, False, False]


def test_two_runs_are_bit_equal_and_another_seed_is_not(
    serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig
) -> None:
    first, second = (attack(serial, update, model, config) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert first.history[-1]["total"] == second.history[-1]["total"]
    assert not torch.equal(first.images, attack(serial, update, model, replace(config, seed=7)).images)


@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_resume_gives_the_same_images(
    serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig, tmp_path: Path, killed_after: int
) -> None:
    whole = attack(serial, update, model, config)
    group = serial(config, Storage(tmp_path))
    run_round = group.run_round

    def dies(*arguments: Any) -> Any:
        if len(group.rounds) == killed_after:
            # A checkpoint is completed while the next round runs; here, before the fault.
            coordinator._saving.poll(wait=True)
            raise KeyboardInterrupt
        return run_round(*arguments)

    group.run_round = dies
    coordinator = Coordinator(update, model, config, group, Storage(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        coordinator.run()
    resumed = attack(serial, update, model, config, out=tmp_path, resume=True)
    assert torch.equal(resumed.images, whole.images)
    assert torch.equal(resumed.consensus, whole.consensus)
    assert [row["step"] for row in resumed.history] == [row["step"] for row in whole.history]
    assert any("Continued after round" in message for message in resumed.messages)


def test_resume_of_a_finished_run_gives_its_images_again(
    serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig, tmp_path: Path
) -> None:
    whole = attack(serial, update, model, config, out=tmp_path)
    assert torch.equal(attack(serial, update, model, config, out=tmp_path, resume=True).images, whole.images)


def test_resume_of_another_run_is_refused_before_any_work(
    serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig, tmp_path: Path
) -> None:
    attack(serial, update, model, config, out=tmp_path)
    other = replace(config, agents=replace(config.agents, learning_rate=0.2))
    with pytest.raises(CheckpointError, match=r"agents\.learning_rate: 0\.1 there, 0\.2 now"):
        attack(serial, update, model, other, out=tmp_path, resume=True)


def test_resume_without_a_checkpoint_begins_anew_and_says_so(
    serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig, tmp_path: Path
) -> None:
    result = attack(serial, update, model, config, out=tmp_path, resume=True)
    assert any("no checkpoint" in message for message in result.messages)


def test_a_storage_that_fails_for_a_while_does_not_end_the_run(
    serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig, tmp_path: Path
) -> None:
    whole = attack(serial, update, model, config)
    group = serial(config, Storage(tmp_path))
    run_round = group.run_round

    def breaks_and_heals(*arguments: Any) -> Any:
        coordinator._saving.poll(wait=True)
        if len(group.rounds) == 1:
            (tmp_path / "checkpoints").rename(tmp_path / "away")
            (tmp_path / "checkpoints").write_text("a file where the folder should be")
        if len(group.rounds) == 3:
            (tmp_path / "checkpoints").unlink()
            (tmp_path / "away").rename(tmp_path / "checkpoints")
        return run_round(*arguments)

    group.run_round = breaks_and_heals
    coordinator = Coordinator(update, model, config, group, Storage(tmp_path))
    result = coordinator.run()
    assert torch.equal(result.images, whole.images)
    assert result.outcome is Outcome.FINISHED
    assert any("was not saved" in message and "the run goes on" in message for message in result.messages)
    assert any("saved again" in message for message in result.messages)
    assert coordinator.status.saved_round == 3


def test_trouble_of_the_storage_and_its_end_reach_who_looks_on_while_the_run_waits(
    serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig, tmp_path: Path
) -> None:
    storage = Storage(tmp_path, patience=60.0)
    coordinator = Coordinator(update, model, config, serial(config, storage), storage)
    assert storage.listener is not None
    storage.listener("s3://bucket/a cannot be written: the server is away.")
    (event,) = coordinator.status.events
    assert (event.kind, event.level) == (EventKind.STORAGE_FAILING, Level.WARNING)
    assert event.message == (
        "The storage fails: s3://bucket/a cannot be written: the server is away. It is tried again for up to 60 s."
    )
    storage.listener(None)
    end = coordinator.status.events[-1]
    # No more is known: a small file may find room on a full disk.
    assert (end.kind, end.message) == (EventKind.STORAGE_WORKING, "An operation on the storage succeeded again.")


def test_a_storage_that_cannot_be_written_at_the_start_is_refused(
    serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="checkpoints"):
        attack(serial, update, model, config, out=tmp_path)


def test_a_seed_that_keeps_failing_is_dropped_and_the_run_ends_without_it(
    serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig
) -> None:
    group = serial(config)
    begin = group.begin

    def poisoned(position: int, order: Order) -> None:
        begin(position, order)
        if position != 1:
            return
        agent = group.agents[1]
        terms = agent._objective.terms
        agent._objective.terms = lambda *arguments: {
            name: value * float("nan") for name, value in terms(*arguments).items()
        }

    group.begin = poisoned
    result = Coordinator(update, model, config, group).run()
    assert result.outcome is Outcome.FINISHED
    assert [candidate.seed for candidate in result.candidates] == [0, 2]
    assert result.restarts == config.agents.restarts
    assert any("Seed 1" in message and "dropped" in message for message in result.messages)
    assert bool(torch.isfinite(result.images).all())


def test_a_run_without_a_seed_left_is_an_error_in_words(
    serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig
) -> None:
    hopeless = replace(config, agents=AgentsConfig(count=2, iterations=10, learning_rate=1e30, sign=False, box=False))
    with pytest.raises(AllSeedsFailedError, match="every seed failed"):
        attack(serial, update, model, hopeless)


def test_given_labels_of_the_wrong_number_are_refused(
    serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig
) -> None:
    with pytest.raises(LabelError, match="2 labels were given for 3 images"):
        attack(serial, update, model, replace(config, labels="0,1"))


def test_given_labels_outside_the_classes_are_refused(
    serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig
) -> None:
    with pytest.raises(LabelError, match="labels names class 99"):
        attack(serial, update, model, replace(config, labels="0,1,99"))


def test_status_tells_round_phase_and_losses(
    serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig
) -> None:
    coordinator = Coordinator(update, model, config, serial(config))
    assert coordinator.status.phase is Phase.STARTING
    coordinator.run()
    assert coordinator.status.round == coordinator.status.rounds == 4
    assert all("gradient" in seed.losses for seed in coordinator.status.seeds)
    assert all(seed.present and seed.step == 40 for seed in coordinator.status.seeds)


def test_checkpoints_are_deleted_only_for_who_says_so(
    serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig, tmp_path: Path
) -> None:
    whole = attack(serial, update, model, config, out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="restart=true deletes it"):
        attack(serial, update, model, config, out=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert torch.equal(attack(serial, update, model, config, out=tmp_path, restart=True).images, whole.images)

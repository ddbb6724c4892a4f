"""Facts x readers: no reader of an update loses, overlooks or invents a fact; `test_facts_table.py` has the writers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.agents import AgentsConfig, Candidate, Outcome
from gradinversion.audit import evaluate, write_report
from gradinversion.audit.doubt import find_doubts
from gradinversion.audit.truth import measure_truth_gap
from gradinversion.capture import (
    IMAGENET,
    BatchNormMode,
    CapturedUpdate,
    ClientConfig,
    Defence,
    Fact,
    LocalTraining,
    Normalisation,
    Penalty,
    PrivateBatch,
    Provenance,
    RecoveredLabels,
    Reduction,
    Sampling,
    assumed,
    capture_gradient,
    simulate_client,
    told,
    train_locally,
)
from gradinversion.capture.decisive import decisive_facts
from gradinversion.capture.stated import state_facts
from gradinversion.coordinator import AttackConfig, Reconstruction, Source, Storage, read_result
from gradinversion.coordinator.identity import identity
from gradinversion.coordinator.result_file import write_result
from gradinversion.settings.case import obtain
from gradinversion.settings.run import RunConfig, config_yaml, differences, load_config, load_config_file
from gradinversion.target.defence_evidence import allow_for_defence
from gradinversion.target.preparation import prepare
from torch import Tensor, nn

TOLD, ASSUMED = Provenance.TOLD, Provenance.ASSUMED
HALF = Normalisation((0.5,) * 3, (0.25,) * 3)
LABELS = torch.arange(4)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6)).eval()


def images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


# Of each fact another value than that of the plain client below, which every reader must take notice of.
OTHERS: dict[str, Any] = {
    "image_count": 3,
    "normalisation": HALF,
    "batch_norm": BatchNormMode.TRAIN_PRIVATE,
    "loss": "mse_loss",
    "reduction": Reduction.SUM,
    "loss_scale": 4.0,
    "label_smoothing": 0.1,
    "penalty": Penalty(5e-4, 1e-5),
    "dropout": True,
    "defences": (Defence("dp_sgd", 1.1, (0.5, 1.0)), Defence("prune", 0.9)),
    "sampling": Sampling(True, 8.0),
    "clients": 2,
    "learning_rate": 0.2,
    "epochs": 3,
    "batch_size": 2,
    "momentum": 0.5,
    "weight_decay": 0.01,
    "shuffled": True,
}


@pytest.fixture(scope="module")
def plain() -> CapturedUpdate:
    model = network()
    return train_locally(model, images(), LABELS, local=LocalTraining(0.1, epochs=2), normalisation=IMAGENET)


@pytest.fixture(scope="module")
def config() -> AttackConfig:
    return AttackConfig(agents=AgentsConfig(count=1, iterations=20, warmup=4), labels="0,1,2,3")


def test_the_table_of_readers_has_every_fact(plain: CapturedUpdate) -> None:
    assert OTHERS.keys() == {name for name, _ in plain.facts.items()}
    assert all(fact.value != OTHERS[name] for name, fact in plain.facts.items())


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("provenance", Provenance)
def test_a_fact_survives_the_file(plain: CapturedUpdate, name: str, provenance: Provenance, tmp_path: Path) -> None:
    update = plain.stating(**{name: Fact(OTHERS[name], provenance, "it is so")})
    update.save(tmp_path / "u.safetensors")
    assert CapturedUpdate.load(tmp_path / "u.safetensors").facts == update.facts


@pytest.mark.parametrize("name", OTHERS)
def test_a_fact_is_part_of_what_identifies_a_run(plain: CapturedUpdate, config: AttackConfig, name: str) -> None:
    other = plain.stating(**{name: told(OTHERS[name])})
    before, now = identity(config, plain), identity(config, other)
    assert {key for key in before | now if before.get(key) != now.get(key)} == {f"fact.{name}"}


@pytest.mark.parametrize("name", OTHERS)
def test_a_fact_is_shown_in_other_words_where_it_is_another(plain: CapturedUpdate, name: str) -> None:
    def words(update: CapturedUpdate) -> str:
        return next(one.words for one in state_facts(update.facts, (), {}) if one.name == name)

    assert words(plain) != words(plain.stating(**{name: told(OTHERS[name])}))


@pytest.fixture(scope="module")
def doubted(plain: CapturedUpdate) -> CapturedUpdate:
    """Everything assumed, with the values of the plain client, so that it can be prepared."""
    return plain.stating(**{name: assumed(fact.value, "a guess") for name, fact in plain.facts.items()})


def test_the_attack_hands_on_every_fact_with_its_provenance(
    plain: CapturedUpdate, doubted: CapturedUpdate, config: AttackConfig
) -> None:
    for update, provenance in ((plain, TOLD), (doubted, ASSUMED)):
        stated = prepare(update, network(), config.request).facts
        assert {one.name for one in stated} == OTHERS.keys()
        assert {one.provenance for one in stated} == {provenance}
        decisive = decisive_facts(update, network())
        assert {one.name for one in stated if one.decisive} == decisive
        assert {one.name for one in stated if one.doubtful} == (decisive if update is doubted else set())


def test_nothing_hangs_on_the_words_beside_the_values(plain: CapturedUpdate, config: AttackConfig) -> None:
    """Sources and what the accountant says are for a reader: no sentence about the client is read back."""
    words = "dp_sgd 1.1, clip 0.5 + prune 0.9; averaged over 2 clients"
    said = {name: Fact(fact.value, fact.provenance, words) for name, fact in plain.facts.items()}
    other = plain.stating(**said)
    other = replace(other, facts=replace(other.facts, privacy=words))
    assert identity(config, plain) == identity(config, other)
    one, two = (prepare(update, network(), config.request) for update in (plain, other))
    assert (one.messages, one.training) == (two.messages, two.training)
    adaptations = [allow_for_defence(update, network(), LABELS) for update in (plain, other)]
    assert adaptations[0] == adaptations[1]


def result_of(update: CapturedUpdate, config: AttackConfig) -> Reconstruction:
    """An attack that found nothing."""
    prepared = prepare(update, network(), config.request)
    grey = torch.full((4, 3, 8, 8), 0.5)
    candidate = Candidate(0, 0, 20, {"gradient": 0.5, "total": 0.5}, Outcome.FINISHED, images=grey)
    return Reconstruction(
        images=grey,
        labels=RecoveredLabels(LABELS, torch.ones(4), "given", "The server knows the labels.", ()),
        consensus=grey,
        agreement=torch.ones(4),
        candidates=(candidate,),
        sources=(Source(0),) * 4,
        gradient_loss=0.5,
        history=(),
        registration=(),
        rounds=1,
        iterations=20,
        seconds=1.0,
        restarts=0,
        outcome=Outcome.FINISHED,
        messages=(),
        config={},
        model_id="m",
        batch_norm="eval",
        defence="none",
        normalisation=IMAGENET,
        belief=prepared.belief,
        facts=prepared.facts,
    )


def test_the_result_the_audit_and_the_report_keep_every_fact(
    doubted: CapturedUpdate, config: AttackConfig, tmp_path: Path
) -> None:
    found = result_of(doubted, config)
    write_result(Storage(str(tmp_path)), found)
    again = read_result(Storage(str(tmp_path)))
    assert again is not None
    assert again.facts == found.facts
    assert again.belief == found.belief
    decisive = decisive_facts(doubted, network())
    assert len(find_doubts(again)) == len(decisive)
    report = evaluate(again, None)
    write_report(report, again, None, str(tmp_path), ())
    written = json.loads((tmp_path / "report.json").read_text())["facts"]
    assert {row["name"]: (row["words"], row["provenance"], row["doubtful"]) for row in written} == {
        one.name: (one.words, "assumed", one.name in decisive) for one in found.facts
    }
    page = (tmp_path / "report.html").read_text()
    assert all(one.title in page for one in found.facts)


def test_the_truth_is_held_against_the_mean_over_the_images_that_came() -> None:
    private = PrivateBatch(images(), LABELS, ("a", "b", "c", "d"))
    mean = capture_gradient(network(), images(), LABELS)
    divided = replace(mean, gradients={name: 0.5 * g for name, g in mean.gradients.items()})
    for update, right in ((divided.stating(sampling=told(Sampling(True, 8.0))), True), (divided, False)):
        gap = measure_truth_gap(network(), private, update)
        assert gap is not None
        assert (gap < 1e-4) is right


def test_what_the_command_line_tells_reaches_the_attack_and_is_another_run(tmp_path: Path) -> None:
    settings = ClientConfig(image_size=16, local_epochs=1, learning_rate=0.1, learning_rate_known=False)
    captured, _, _ = simulate_client(settings, 0)
    captured.save(tmp_path / "u.safetensors")
    words = [f"update={tmp_path}/u.safetensors", f"out={tmp_path}/out"]
    plain, given = (load_config(more) for more in (words, [*words, "told.learning_rate=0.2"]))
    assert load_config_file(_written(given, tmp_path)) == given
    before, update, model = obtain(plain).update, obtain(given).update, obtain(plain).model
    assert before.facts == captured.facts
    assert update.facts == captured.stating(learning_rate=told(0.2, "the user")).facts
    assert differences(plain, given) == ["told.learning_rate ( before, 0.2 now)"]
    assert identity(plain, before) != identity(given, update)
    # A rate that is told is no longer estimated: half the gradient of a rate of 0.1.
    prepared = prepare(update, model, given.request)
    assert prepared.target.scale_known
    name = next(iter(update.gradients))
    torch.testing.assert_close(prepared.target.update.gradients[name], -update.gradients[name] / 0.2)


def _written(config: RunConfig, folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(config_yaml(config), encoding="utf-8")
    return path

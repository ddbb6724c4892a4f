"""The record of facts: its values, where they come from, and files of an older version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from gradinversion.capture import (
    IMAGENET,
    BatchNormMode,
    CapturedUpdate,
    ClientFacts,
    LocalFacts,
    LocalTraining,
    Normalisation,
    Provenance,
    UpdateError,
    assumed,
    read,
    told,
)
from gradinversion.capture.facts import known_facts
from gradinversion.capture.stated import state_facts


def facts(local: LocalTraining | None = None) -> ClientFacts:
    return known_facts(4, IMAGENET, BatchNormMode.EVAL, "cross_entropy", local)


def test_what_nobody_says_is_assumed() -> None:
    bare = ClientFacts(told(4), told(IMAGENET), told(BatchNormMode.EVAL), local=LocalFacts(epochs=told(2)))
    said = {name for name, fact in bare.items() if fact.provenance is Provenance.TOLD}
    assert said == {"image_count", "normalisation", "batch_norm", "epochs"}
    assert all(fact.assumed for name, fact in bare.items() if name not in said)


def test_a_client_that_keeps_its_rate_has_told_all_but_that() -> None:
    local = LocalFacts.told(LocalTraining(None, epochs=2))
    assert local.learning_rate.assumed
    assert local.epochs == told(2)
    assert local.training == LocalTraining(None, epochs=2)


def test_other_facts_take_the_place_of_these() -> None:
    changed = facts(LocalTraining(0.1)).stating(momentum=told(0.9), clients=told(2))
    assert changed.local is not None
    assert (changed.local.momentum.value, changed.clients.value) == (0.9, 2)
    with pytest.raises(UpdateError, match="momentum is of local training, and the update is a gradient"):
        facts().stating(momentum=told(0.9))
    with pytest.raises(UpdateError, match="label smoothing is 1"):
        facts().stating(label_smoothing=told(1.0))


def test_the_reader_meets_contradicted_facts_first_then_assumed_ones_on_which_much_hangs() -> None:
    record = facts(LocalTraining(0.1)).stating(
        momentum=assumed(0.0), reduction=assumed(facts().reduction.value), loss_scale=read(4.0, "the final layer")
    )
    stated = state_facts(record, {"momentum", "loss_scale", "reduction", "epochs"}, {"epochs": "The counter says 3."})
    assert [fact.name for fact in stated[:4]] == ["epochs", "reduction", "momentum", "loss_scale"]
    assert [fact.name for fact in stated if fact.doubtful] == ["epochs", "reduction", "momentum"]
    by_name = {fact.name: fact for fact in stated}
    assert by_name["momentum"].remedy == "told.momentum=0.9"
    assert by_name["normalisation"].words == "ImageNet's"
    assert by_name["loss_scale"].source == "the final layer"
    assert {fact.name for fact in stated} == {name for name, _ in record.items()}


def test_a_file_of_version_1_loads_with_every_fact_assumed(tmp_path: Path) -> None:
    facts = {
        "version": 1,
        "image_count": 2,
        "image_shape": [3, 8, 9],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "model_id": "convnet",
        "weight_hash": "ab" * 32,
        "batch_norm": "eval",
        "buffers": False,
        "kind": "weight_delta",
        "loss": "cross_entropy",
        "defence": "clip 0.5",
        "local": {
            "learning_rate": 0.1,
            "epochs": 2,
            "batch_size": None,
            "momentum": 0.9,
            "weight_decay": 0.0,
            "shuffled": False,
        },
    }
    path = tmp_path / "old.safetensors"
    tensors = {"gradient/a": torch.ones(2)}
    safetensors.torch.save_file(tensors, path, metadata={"gradinversion": json.dumps(facts)})
    update = CapturedUpdate.load(path)
    assert {fact.provenance for _, fact in update.facts.items()} == {Provenance.ASSUMED}
    assert update.local == LocalTraining(0.1, 2, momentum=0.9)
    assert update.normalisation == Normalisation((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    # Nobody reads the old words back; they are only repeated.
    assert update.defences == ()
    assert "clip 0.5" in update.facts.defences.source
    for name, wrong in (("local", {"epochs": 2}), ("mean", None), ("batch_norm", 3), ("defence", 3), ("loss", "")):
        safetensors.torch.save_file(tensors, path, metadata={"gradinversion": json.dumps(facts | {name: wrong})})
        with pytest.raises(UpdateError):
            CapturedUpdate.load(path)


def test_normalisation_known_values_and_round_trip() -> None:
    normalisation = Normalisation((0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    low, high = normalisation.bounds()
    assert low.flatten().tolist() == [-1.0, -1.0, 0.0]
    assert high.flatten().tolist() == [1.0, 3.0, 1.0]
    images = torch.rand(2, 5, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(normalisation.invert(normalisation.apply(images)), images)
    assert float(normalisation.invert(torch.full((1, 3, 1, 1), 9.0)).max()) == 9.0
    with pytest.raises(UpdateError, match="1 means and 2 deviations"):
        Normalisation((0.0,), (1.0, 1.0))

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.capture import ImageError, UpdateError
from gradinversion.coordinator import Storage
from gradinversion.settings.run import RunConfig, load_config
from gradinversion.sweep.accuracy import Accuracy, accuracy_identity, load_accuracy, save_accuracy, train_and_test
from PIL import Image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that one can tell apart by their colour, with noise on top."""
    root = tmp_path_factory.mktemp("classes")
    generator = torch.Generator().manual_seed(0)
    for name, colour in (("blue", (0.2, 0.3, 0.8)), ("red", (0.8, 0.3, 0.2))):
        (root / name).mkdir()
        for index in range(15):
            image = torch.tensor(colour) + 0.1 * torch.randn(8, 8, 3, generator=generator)
            Image.fromarray((255 * image.clamp(0, 1)).byte().numpy()).save(root / name / f"{index}.png")
    return root


def config(*words: str) -> RunConfig:
    return load_config(["client.classes=2", "client.batch_size=2", "client.image_size=8", *words])


def trained(*arguments: Any) -> Accuracy:
    found = train_and_test(*arguments)
    assert found is not None
    return found


def test_a_model_learns_and_a_defence_that_leaves_nothing_costs_everything(folder: Path) -> None:
    told: list[object] = []
    free = trained(config(), str(folder), 40, told.append)
    lost = trained(config("client.defence=clip", "client.defence_strength=0.0000001"), str(folder), 40, told.append)
    assert free.mean > 0.9
    assert lost.mean < free.mean
    assert (free.train_images, free.test_images, free.chance) == (24, 6, 0.5)
    assert told


@pytest.mark.parametrize("bn", ["train_shared", "train_private"])
def test_models_with_batch_statistics_are_tested_with_those_of_the_training_images(folder: Path, bn: str) -> None:
    found = trained(config(f"client.bn={bn}"), str(folder), 12, lambda state: None)
    assert found.mean > 0.9


@pytest.mark.parametrize(
    "words", [("client.defence=dp_sgd", "client.defence_strength=1e-6"), ("client.clients=2", "client.labels=0,1,0,1")]
)
def test_whatever_the_client_sends_can_be_trained_on(folder: Path, words: tuple[str, ...]) -> None:
    assert trained(config(*words), str(folder), 40, lambda state: None).mean > 0.7


def test_training_that_does_not_stay_finite_is_repeated_with_a_smaller_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradinversion.sweep import accuracy

    usual = trained(config(), str(folder), 20, lambda state: None)
    assert usual.learning_rate == 0.02
    monkeypatch.setattr(accuracy, "_LEARNING_RATES", (1e20, 0.02))
    assert train_and_test(config(), str(folder), 20, lambda state: None) == usual
    monkeypatch.setattr(accuracy, "_LEARNING_RATES", (1e20, 1e19))
    assert train_and_test(config(), str(folder), 20, lambda state: None) is None
    assert "any of the learning rates 1e+20, 1e+19" in accuracy.not_finite()


def test_what_is_refused_before_the_first_step_is_no_matter_of_the_learning_rate(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradinversion.sweep import accuracy

    def refuse(*arguments: object) -> None:
        raise UpdateError("the client sends nothing")

    monkeypatch.setattr(accuracy, "send_update", refuse)
    with pytest.raises(UpdateError, match="the client sends nothing"):
        train_and_test(config(), str(folder), 20, lambda state: None)


def test_the_same_seed_gives_the_same_accuracy(folder: Path) -> None:
    noisy = config("client.defence=noise", "client.defence_strength=1")
    first, second = (train_and_test(noisy, str(folder), 4, lambda state: None) for _ in range(2))
    assert first == second


def test_a_folder_that_cannot_be_used_is_refused_in_a_sentence(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ImageError, match="is no folder"):
        train_and_test(config(), str(tmp_path / "none"), 1, lambda state: None)
    with pytest.raises(ImageError, match="0 class folders"):
        train_and_test(config(), str(tmp_path), 1, lambda state: None)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "one.png")
    with pytest.raises(ImageError, match="holds 1 images"):
        train_and_test(config(), str(tmp_path), 1, lambda state: None)


def test_an_accuracy_is_kept_for_its_settings_alone(tmp_path: Path) -> None:
    storage, accuracy = Storage(tmp_path), Accuracy((0.5, 0.75), 300, 4, 24, 6, 0.5, 0.02)
    identity = accuracy_identity(config(), "folder", 300)
    assert load_accuracy(storage, "noise 0.1", identity) is None
    save_accuracy(storage, "noise 0.1", identity, accuracy)
    assert load_accuracy(storage, "noise 0.1", identity) == accuracy
    assert load_accuracy(storage, "noise 0.1", accuracy_identity(config(), "folder", 299)) is None
    other = replace(config(), seed=1)
    assert load_accuracy(storage, "noise 0.1", accuracy_identity(other, "folder", 300)) is None
    (tmp_path / "accuracy" / "noise-0.1.json").write_text("{")
    assert load_accuracy(storage, "noise 0.1", identity) is None

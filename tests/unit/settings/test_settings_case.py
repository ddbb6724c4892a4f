"""From the words of a command to update, model and truth."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gradinversion.capture import (
    ClientConfig,
    ClientError,
    ImageError,
    ModelError,
    UpdateError,
    load_model,
    simulate_client,
)
from gradinversion.command.words import of_another_verb, split_verb
from gradinversion.refusal import ConfigError
from gradinversion.settings.case import obtain
from gradinversion.settings.run import load_config
from PIL import Image
from safetensors.torch import save_file

CLIENT = ClientConfig(
    batch_size=2, channels=1, image_size=8, image_width=12, classes=30, labels="7,29", mean=(0.2,), std=(0.4,)
)


@pytest.fixture
def captured(tmp_path: Path) -> Path:
    """An update of grey 8x12 images, which lie beside it as files that hold them to the bit."""
    folder = tmp_path / "private"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(generator.integers(0, 256, (8, 12), dtype=np.uint8)).save(folder / f"{name}.png")
    update, model, _ = simulate_client(replace(CLIENT, images=str(folder)), 3)
    update.save(tmp_path / "update.safetensors")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    return tmp_path


def words(folder: Path) -> list[str]:
    return [f"update={folder}/update.safetensors", f"client.weights={folder}/model.pt"]


def test_an_update_alone_has_no_truth(captured: Path) -> None:
    case = obtain(load_config(words(captured)))
    assert case.private is None
    assert case.evidence == ""
    assert case.client.classes == 30
    assert case.update.mismatches(case.model) == []


def test_the_command_that_repeats_an_attack_has_nothing_of_a_grid(captured: Path) -> None:
    preset = captured / "grid.yaml"
    preset.write_text("budget: 10m\nsweep:\n  bn: [eval]\nagents:\n  count: 2\n", encoding="utf-8")
    command = obtain(load_config([f"preset={preset}", *words(captured)])).command
    verb, given = split_verb(shlex.split(command)[1:])
    assert of_another_verb(verb, given) == []
    assert "agents.count=2" in given


def test_an_attack_does_not_decode_with_the_private_photos(captured: Path) -> None:
    simulated = obtain(load_config(["client.batch_size=2", "client.image_size=8", "peeling.photos_without=rocket"]))
    assert simulated.attack.peeling.photos_without == ("rocket", "astronaut", "chelsea")
    # What was asked for is told as it was asked for.
    assert simulated.settings["peeling"]["photos_without"] == ["rocket"]
    given = [*words(captured), f"private={captured}/private", "private.labels=7,29", "peeling.photos={captured}/none"]
    with pytest.raises(ImageError, match="does not exist"):
        obtain(load_config(given))


def test_an_update_with_its_images_has_the_truth_of_a_simulated_client(captured: Path) -> None:
    given = [*words(captured), f"private={captured}/private", "private.labels=7,29"]
    case = obtain(load_config(given))
    expected = simulate_client(replace(CLIENT, images=f"{captured}/private"), 3)[2]
    assert case.private is not None
    assert torch.equal(case.private.images, expected.images)
    assert torch.equal(case.private.labels, expected.labels)
    assert case.private.names == ("a", "b")
    assert case.evidence.startswith("The private images give this update")
    again = case.send(case.private)
    assert all(torch.equal(g, again.gradients[name]) for name, g in case.update.gradients.items())


def test_images_under_the_wrong_labels_are_told_before_the_attack(captured: Path) -> None:
    case = obtain(load_config([*words(captured), f"private={captured}/private", "private.labels=29,7"]))
    assert case.evidence.startswith("The private images do not give this update")


def test_images_that_do_not_fit_are_refused_before_the_attack(captured: Path) -> None:
    with pytest.raises(ClientError, match=r"private\.labels names class 30, but with 30 classes"):
        obtain(load_config([*words(captured), f"private={captured}/private", "private.labels=7,30"]))
    (captured / "private" / "b.png").unlink()
    with pytest.raises(ClientError, match="holds 1 images, and the update is of 2"):
        obtain(load_config([*words(captured), f"private={captured}/private", "private.labels=7,29"]))


def test_a_simulated_client_of_grey_images() -> None:
    case = obtain(load_config(["client.channels=1", "client.image_size=8", "client.batch_size=1"]))
    assert case.update.image_shape == (1, 8, 8)
    assert case.evidence == ""
    model = load_model("convnet", 10, (1, 8, 8))
    assert case.update.mismatches(model) == []


@pytest.fixture
def checkpoints(tmp_path: Path) -> tuple[Path, ClientConfig]:
    """What a client of 30 classes was sent and sent back, saved as ``before.pt`` and ``after.pt``."""
    config = ClientConfig(
        batch_size=3, image_size=8, classes=30, local_epochs=2, local_batch_size=2, learning_rate=0.05, momentum=0.5
    )
    update, model, _ = simulate_client(config, 0)
    before = model.state_dict()
    torch.save(before, tmp_path / "before.pt")
    after = {f"module.{name}": before[name] + update.gradients.get(name, 0) for name in before}
    torch.save({"state_dict": after}, tmp_path / "after.pt")
    return tmp_path, config


TRAINED = ["client.batch_size=3", "client.image_size=8", "client.local_epochs=2", "client.learning_rate=0.05"]


def test_two_checkpoints_are_an_update(checkpoints: tuple[Path, ClientConfig]) -> None:
    folder, client = checkpoints
    given = [f"before={folder}/before.pt", f"after={folder}/after.pt", *TRAINED]
    case = obtain(load_config([*given, "client.local_batch_size=2", "client.momentum=0.5"]))
    expected, _, _ = simulate_client(client, 0)
    assert case.client.classes == 30
    assert case.update.local == expected.local
    assert (case.update.image_count, case.update.image_shape) == (3, (3, 8, 8))
    assert case.update.weight_hash == expected.weight_hash
    for name, delta in expected.gradients.items():
        torch.testing.assert_close(case.update.gradients[name], delta, atol=1e-7, rtol=0)
    provenance = {name: fact.provenance.value for name, fact in case.update.facts.items()}
    told = {"image_count", "learning_rate", "epochs", "batch_size", "momentum"}
    assert {name for name, how in provenance.items() if how == "told"} == told
    assert provenance["batch_norm"] == "read"
    assert provenance["normalisation"] == provenance["weight_decay"] == "assumed"


def test_two_checkpoints_with_their_images(checkpoints: tuple[Path, ClientConfig]) -> None:
    folder, client = checkpoints
    batch = simulate_client(client, 0)[2]
    save_file({"images": batch.images, "labels": batch.labels}, folder / "private.safetensors")
    given = [f"before={folder}/before.pt", f"after={folder}/after.pt", *TRAINED, "client.local_batch_size=2"]
    right = obtain(load_config([*given, "client.momentum=0.5", f"private={folder}/private.safetensors"]))
    assert right.evidence.startswith("The private images give this update")
    wrong = obtain(load_config([*given, f"private={folder}/private.safetensors"]))
    assert wrong.evidence.startswith("The private images do not give this update")


def test_settings_of_the_client_that_are_given_are_told(checkpoints: tuple[Path, ClientConfig]) -> None:
    folder, _ = checkpoints
    given = [f"before={folder}/before.pt", f"after={folder}/after.pt", *TRAINED[:3], "client.learning_rate_known=false"]
    more = ["client.mean=0.5,0.5,0.5", "client.std=0.5,0.5,0.5", "client.defence=noise:0.1", "client.bn=train_private"]
    facts = obtain(load_config([*given, *more])).update.facts
    assert facts.normalisation.value.mean == (0.5,) * 3
    assert [one.name for one in facts.defences.value] == ["noise"]
    assert facts.batch_norm.value == "train_private"
    assert facts.local is not None
    assert facts.local.learning_rate.value is None
    assert not any(fact.assumed for fact in (facts.normalisation, facts.defences, facts.batch_norm))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["before=a.pt", *TRAINED], r"before=a\.pt: give after=FILE too"),
        (["after=a.pt", *TRAINED], r"after=a\.pt: give before=FILE too"),
        (["before=a.pt", "after=b.pt"], "client.batch_size, client.image_size, client.local_epochs, client.learning_r"),
        (["before=a.pt", "after=b.pt", *TRAINED[1:]], r"^client\.batch_size: two checkpoints do not tell this"),
        (["before=a.pt", "after=b.pt", *TRAINED[:2], "client.learning_rate=1", "client.local_epochs=0"], "at least 1"),
        (["before=a.pt", "after=b.pt", "update=u.safetensors", *TRAINED], "and not both"),
        (["before=a.pt", "after=b.pt", "client.weights=c.pt", *TRAINED], "the server's weights are before=FILE"),
    ],
)  # fmt: skip
def test_checkpoints_without_what_they_need_are_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config(words)


@pytest.mark.parametrize(
    ("words", "named"), [(TRAINED[:2], "client.learning_rate"), ([*TRAINED, "client.mean=0.5"], "client.mean has 1")]
)
def test_of_checkpoints_nothing_is_said_that_was_not_asked_for(words: list[str], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["before=a.pt", "after=b.pt", *words])
    (problem,) = caught.value.problems
    assert named in problem


def test_checkpoints_that_do_not_belong_together_are_refused(checkpoints: tuple[Path, ClientConfig]) -> None:
    folder, _ = checkpoints
    for after, error, words in (
        ("before.pt", UpdateError, "zero everywhere"),
        ("none.pt", ModelError, "does not exist"),
    ):
        with pytest.raises(error, match=words):
            obtain(load_config([f"before={folder}/before.pt", f"after={folder}/{after}", *TRAINED]))

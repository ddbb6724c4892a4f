"""From the words of a command to update, model and truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gradinversion.capture import ClientConfig, ClientError, load_model, simulate_client
from gradinversion.config import load_config
from gradinversion.subject import obtain
from PIL import Image

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
    subject = obtain(load_config(words(captured)))
    assert subject.private is None
    assert subject.evidence == ""
    assert subject.config.client.classes == 30
    assert subject.update.mismatches(subject.model) == []


def test_an_update_with_its_images_has_the_truth_of_a_simulated_client(captured: Path) -> None:
    given = [*words(captured), f"private={captured}/private", "private.labels=7,29"]
    subject = obtain(load_config(given))
    expected = simulate_client(replace(CLIENT, images=f"{captured}/private"), 3)[2]
    assert subject.private is not None
    assert torch.equal(subject.private.images, expected.images)
    assert torch.equal(subject.private.labels, expected.labels)
    assert subject.private.names == ("a", "b")
    assert subject.evidence.startswith("The private images are those behind the update")
    again = subject.send(subject.private)
    assert all(torch.equal(g, again.gradients[name]) for name, g in subject.update.gradients.items())


def test_images_under_the_wrong_labels_are_told_before_the_attack(captured: Path) -> None:
    subject = obtain(load_config([*words(captured), f"private={captured}/private", "private.labels=29,7"]))
    assert subject.evidence.startswith("The private images do not give this update")


def test_images_that_do_not_fit_are_refused_before_the_attack(captured: Path) -> None:
    with pytest.raises(ClientError, match=r"private\.labels names class 30, but with 30 classes"):
        obtain(load_config([*words(captured), f"private={captured}/private", "private.labels=7,30"]))
    (captured / "private" / "b.png").unlink()
    with pytest.raises(ClientError, match="holds 1 images, and the update is of 2"):
        obtain(load_config([*words(captured), f"private={captured}/private", "private.labels=7,29"]))


def test_a_simulated_client_of_grey_images() -> None:
    subject = obtain(load_config(["client.channels=1", "client.image_size=8", "client.batch_size=1"]))
    assert subject.update.image_shape == (1, 8, 8)
    assert subject.evidence == ""
    model = load_model("convnet", 10, (1, 8, 8))
    assert subject.update.mismatches(model) == []

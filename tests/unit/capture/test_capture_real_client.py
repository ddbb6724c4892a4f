"""An update from a file: the model of its own shape and classes, and the images that its owner tells."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradinversion.capture import (
    CapturedUpdate,
    ClientConfig,
    ClientError,
    LocalTraining,
    ModelError,
    Normalisation,
    PrivateConfig,
    UpdateError,
    capture_gradient,
    load_model,
    simulate_client,
    train_locally,
)
from gradinversion.capture.client.private_images import load_private
from gradinversion.capture.client.resending import resend
from gradinversion.capture.facts import assumed, told
from gradinversion.capture.server import load_server_model
from gradinversion.refusal import ConfigError
from PIL import Image
from safetensors.torch import save_file

SHAPE = (1, 8, 12)
HALF = ((0.5,), (0.5,))


def grey_update(count: int = 2, classes: int = 10) -> CapturedUpdate:
    model = load_model("convnet", classes, SHAPE)
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))
    return capture_gradient(model, images, torch.arange(count), normalisation=HALF)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    def make(*names: str) -> Path:
        for index, name in enumerate(names):
            path = tmp_path / "private" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(index).integers(0, 256, SHAPE[1:], dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        return tmp_path / "private"

    return make


@pytest.mark.parametrize("shape", [(1, 28, 28), (4, 28, 28), (3, 24, 40)])
def test_the_model_is_that_of_the_updates_own_shape(shape: tuple[int, int, int]) -> None:
    model, images = load_model("convnet", 10, shape), torch.rand(2, *shape)
    half = (0.5,) * shape[0]
    update = capture_gradient(model, images, torch.tensor([0, 1]), normalisation=(half, half))
    found, classes = load_server_model(update, ClientConfig(), 0)
    assert classes == 10
    assert update.mismatches(found) == []


@pytest.mark.parametrize("told", [10, 100])
@pytest.mark.parametrize("name", ["convnet", "squeezenet1_1"])
def test_classes_are_read_off_the_update(name: str, told: int) -> None:
    model = load_model(name, 100, 32)
    update = capture_gradient(model, torch.rand(1, 3, 32, 32), torch.tensor([77]))
    found, classes = load_server_model(update, ClientConfig(model=name, classes=told), 0)
    assert classes == 100
    assert update.mismatches(found) == []


def test_classes_that_contradict_the_update_are_refused() -> None:
    with pytest.raises(
        ModelError, match=r"client\.classes is 7, and .* sent has 100 classes; give client\.classes=100"
    ):
        load_server_model(grey_update(classes=100), ClientConfig(classes=7), 0)


OWN = """
from torch import nn
def fixed(): return nn.Sequential(nn.Flatten(), nn.Linear(96, 17))
def frozen(num_classes=10):
    net = nn.Sequential(nn.Flatten(), nn.Linear(96, 12), nn.Linear(12, num_classes))
    net[2].requires_grad_(False)
    return net
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "own_real_for_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_real_for_test", raising=False)
    import own_real_for_test  # type: ignore[import-not-found]

    return own_real_for_test


def test_classes_of_a_model_that_asks_for_none_are_those_of_its_output(own: Any, tmp_path: Path) -> None:
    model = own.fixed()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    update = capture_gradient(model, torch.rand(1, *SHAPE), [16], normalisation=HALF)
    client = ClientConfig(model="own_real_for_test:fixed", weights=str(tmp_path / "w.pt"))
    assert load_server_model(update, client, 0)[1] == 17


def test_classes_of_a_final_layer_that_is_not_trained_are_those_of_the_weights(own: Any, tmp_path: Path) -> None:
    model = own.frozen(33)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    update = capture_gradient(model, torch.rand(1, *SHAPE), [32], normalisation=HALF)
    client = ClientConfig(model="own_real_for_test:frozen", weights=str(tmp_path / "w.pt"))
    assert load_server_model(update, client, 0)[1] == 33


def test_another_model_is_still_refused_with_all_that_differs() -> None:
    with pytest.raises(UpdateError, match="made with another model"):
        load_server_model(simulate_client(ClientConfig(), 0)[0], ClientConfig(model="resnet18"), 0)


def test_a_gradient_that_the_client_kept_to_itself_is_missing_and_the_others_are_used() -> None:
    update = simulate_client(ClientConfig(model="resnet18"), 0)[0]
    del update.gradients["layer3.0.conv2.weight"]
    client = ClientConfig(model="resnet18")
    assert update.mismatches(load_server_model(update, client, 0)[0]) == []
    with pytest.raises(UpdateError, match=r"'layer3\.0\.conv2\.weight' is missing from the update"):
        load_server_model(update, client, 1)  # random weights of another seed: nothing says that it is this model


def test_a_claim_of_vast_images_is_not_believed_for_a_gradient_that_is_missing() -> None:
    update = grey_update()
    last = next(name for name, gradient in update.gradients.items() if gradient.ndim == 2)
    vast = replace(update, image_shape=(1, 8_192, 8_192))
    del vast.gradients[last]
    with pytest.raises(UpdateError, match=f"'{last}' is missing from the update"):
        load_server_model(vast, ClientConfig(), 0)


def test_private_images_come_at_the_updates_own_shape_with_their_labels(folder: Callable[..., Path]) -> None:
    source = str(folder("b", "a"))
    batch = load_private(PrivateConfig(source, "4,2"), grey_update(), 10)
    assert batch is not None
    assert batch.names == ("a", "b")
    assert batch.labels.tolist() == [4, 2]
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, SHAPE[1:], dtype=np.uint8))
    assert torch.equal(batch.images[0, 0], pixels.float() / 255)
    assert load_private(PrivateConfig(), grey_update(), 10) is None


def test_private_class_folders_need_no_labels(folder: Callable[..., Path]) -> None:
    source = str(folder("cat/x", "dog/x"))
    batch = load_private(PrivateConfig(source), grey_update(), 10)
    assert batch is not None
    assert (batch.names, batch.labels.tolist()) == (("cat/x", "dog/x"), [0, 1])
    given = load_private(PrivateConfig(source, "5,5"), grey_update(), 10)
    assert given is not None
    assert given.labels.tolist() == [5, 5]


@pytest.mark.parametrize(
    ("names", "labels", "words"),
    [
        (("a", "b"), "auto", r"nothing tells the labels of private\.images=.*private\.labels=0,0,3"),
        (("a", "b", "c"), "0,1,2", "holds 3 images, and the update is of 2; give those that the client trained on"),
        (("a",), "0", "holds 1 images, and the update is of 2"),
        (("a", "b"), "0", r"private\.labels lists 1 labels for 2 images"),
        (("a", "b"), "0,10", r"private\.labels names class 10, but with 10 classes"),
        (("a", "b"), "cat,dog", r"private\.labels is 'cat,dog'"),
        (("a/1", "b/1"), "auto", "with 1 classes the labels are 0 to 0"),
    ],
)
def test_private_images_that_cannot_be_the_updates_are_refused(
    folder: Callable[..., Path], names: tuple[str, ...], labels: str, words: str
) -> None:
    classes = 1 if names == ("a/1", "b/1") else 10
    with pytest.raises(ClientError, match=words):
        load_private(PrivateConfig(str(folder(*names)), labels), grey_update(), classes)


def test_a_file_with_images_and_labels(tmp_path: Path) -> None:
    path = str(tmp_path / "private.safetensors")
    images = torch.rand(2, *SHAPE)
    save_file({"images": images, "labels": torch.tensor([3, 3])}, path)
    batch = load_private(PrivateConfig(path), grey_update(), 10)
    assert batch is not None
    assert torch.equal(batch.images, images)
    assert batch.labels.tolist() == [3, 3]
    given = load_private(PrivateConfig(path, "1,2"), grey_update(), 10)
    assert given is not None
    assert given.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"images": torch.rand(2, *SHAPE)}, "holds images; give the tensors 'images'"),
        ({"labels": torch.tensor([0, 1])}, "holds labels; give"),
        ({"images": torch.rand(3, *SHAPE), "labels": torch.arange(3)}, r"\(3, 1, 8, 12\), and the update is of \(2, 1"),
        ({"images": torch.rand(2, *SHAPE), "labels": torch.tensor([0, -1])}, "whole numbers"),
        ({"images": torch.rand(2, *SHAPE), "labels": torch.tensor([0, 12])}, "names class 12"),
        ({"images": 255 * torch.rand(2, *SHAPE), "labels": torch.tensor([0, 1])}, "private pixels span"),
    ],
)
def test_a_file_that_cannot_be_the_truth_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], words: str
) -> None:
    path = tmp_path / "private.safetensors"
    save_file(tensors, path)
    with pytest.raises(ValueError, match=words):
        load_private(PrivateConfig(str(path)), grey_update(), 10)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"\x80\x04pickle"):
        (tmp_path / "p.safetensors").write_bytes(content)
        with pytest.raises(ClientError, match="cannot be read"):
            load_private(PrivateConfig(str(tmp_path / "p.safetensors")), grey_update(), 10)
    with pytest.raises(ClientError, match="cannot be read"):
        load_private(PrivateConfig(str(tmp_path / "none.safetensors")), grey_update(), 10)


@pytest.mark.parametrize(
    "settings",
    [{}, {"bn": "train_shared"}, {"bn": "train_private"}, {"local_epochs": 2, "local_batch_size": 1, "momentum": 0.5}],
)
def test_the_clients_own_images_give_its_update_again(settings: dict[str, Any]) -> None:
    config = ClientConfig(batch_size=2, image_size=8, mean=(0.1,) * 3, std=(0.3,) * 3, **settings)
    update, model, private = simulate_client(config, 0)
    again = resend(update, model, private.images, private.labels)
    assert all(torch.equal(g, again.gradients[name]) for name, g in update.gradients.items())


def test_what_the_update_does_not_tell_cannot_be_sent_again() -> None:
    update, model, private = simulate_client(ClientConfig(batch_size=2, image_size=8), 0)
    other = update.stating(loss=told("focal"), label_smoothing=told(0.1))
    with pytest.raises(UpdateError, match="a client with this loss and label smoothing is not simulated"):
        resend(other, model, private.images, private.labels)
    delta = train_locally(model, private.images, private.labels, local=LocalTraining(0.1))
    unknown = delta.stating(learning_rate=assumed(None))
    with pytest.raises(UpdateError, match="learning rate is not known"):
        resend(unknown, model, private.images, private.labels)


def test_labels_of_no_images_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"private\.labels=0,1 are labels of no images; give private=FOLDER"):
        PrivateConfig(labels="0,1")


LIMITED = """
import resource, sys
import torch
from gradinversion.capture import ClientConfig, UpdateError
from gradinversion.capture.server import load_server_model
from gradinversion.capture import CapturedUpdate
update = CapturedUpdate.load(sys.argv[1])
for name in ("resnet18", "convnet"):
    # What must be imported is.
    load_server_model
    from gradinversion.capture.models import build_skeleton
    build_skeleton(name, 10, 32)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)
for name in ("resnet18", "convnet"):
    try:
        load_server_model(update, ClientConfig(model=name), 0)
    except UpdateError as error:
        print("refused", "another model" in str(error))
"""


def test_an_update_that_claims_vast_images_is_compared_before_anything_is_built(tmp_path: Path) -> None:
    update = grey_update(classes=10)
    facts = update.facts.stating(normalisation=told(Normalisation((0.5,) * 3, (0.5,) * 3)))
    vast = replace(update, gradients={"a": torch.ones(1)}, image_shape=(3, 8192, 8192), facts=facts)
    vast.save(tmp_path / "vast.safetensors")
    words = [sys.executable, "-c", LIMITED, str(tmp_path / "vast.safetensors")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout == "refused True\nrefused True\n", done.stderr


def test_of_many_mismatches_the_first_are_listed() -> None:
    update = replace(grey_update(classes=10), gradients={f"g{index}\x1b": torch.ones(1) for index in range(5_000)})
    with pytest.raises(UpdateError) as refused:
        load_server_model(update, ClientConfig(), 0)
    assert "more" in str(refused.value)
    assert len(str(refused.value)) < 5_000
    assert "\x1b" not in str(refused.value)

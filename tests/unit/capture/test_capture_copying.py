"""Copies of models that hold what cannot be copied."""

from __future__ import annotations

import copy
import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch
import torch.nn.utils.prune
from gradinversion.capture import ModelError, capture_gradient, train_locally, weight_hash
from gradinversion.capture.copying import PortableLock, copy_model, refuse_to_copy
from gradinversion.capture.local_training import LocalTraining
from ray import cloudpickle
from torch import Tensor, nn

IMAGES, LABELS = torch.rand(2, 3, 32, 32), torch.tensor([3, 7])


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))


class Holder(nn.Module):
    """Layers, and whatever else somebody keeps beside them."""

    def __init__(self, **held: Any) -> None:
        super().__init__()
        self.layers = layers()
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


class KeepsActivations(nn.Module):
    """Its last activations, as an attribute, in a dictionary and in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = layers()
        self.features: Tensor | None = None
        self.maps: dict[str, Tensor] = {}
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.features = self.maps["first"] = self.layers[:2](images)
        self.seen.append(self.features)
        logits: Tensor = self.layers[2:](self.features)
        return logits


class Locked(Holder):
    lock: threading.Lock
    inner: dict[str, list[Any]]

    def __init__(self) -> None:
        super().__init__(lock=threading.Lock(), inner={"locks": [threading.RLock()]})

    def forward(self, images: Tensor) -> Tensor:
        with self.lock, self.inner["locks"][0]:
            return super().forward(images)


class Logged(Holder):
    text: io.TextIOBase
    content: io.RawIOBase
    out: TextIO

    def __init__(self, text: io.TextIOBase, content: io.RawIOBase) -> None:
        super().__init__(text=text, content=content, log=logging.getLogger("a model's"), out=sys.stdout)

    def forward(self, images: Tensor) -> Tensor:
        self.text.write("a pass\n")
        self.text.flush()
        self.content.write(b"a pass")
        print("a pass", file=self.out)
        return super().forward(images)


class StatefulBuffer(nn.Module):
    """A buffer that is computed with a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = layers()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        self.mean = logits.mean()
        return logits


def twice(model: nn.Module) -> nn.Module:
    """A copy of a copy that has been sent to another process and back."""
    # As Ray sends it.
    sent = cloudpickle.loads(cloudpickle.dumps(copy_model(model)))
    found: nn.Module = cloudpickle.loads(cloudpickle.dumps(copy_model(sent)))
    return found


def check(model: nn.Module) -> nn.Module:
    """A travelled copy computes what the model computes, and is copied by torch's own means too."""
    expected = model(IMAGES)
    found = twice(model)
    assert torch.equal(found(IMAGES), expected)
    assert weight_hash(found) == weight_hash(model)
    assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in model.parameters()]
    return found


def test_locks_arrive_open_and_of_their_own() -> None:
    model = Locked()
    found = check(model)
    with model.lock:
        assert torch.equal(found(IMAGES), model.layers(IMAGES))  # held there, open here
    assert isinstance(found.lock, PortableLock)
    assert found.lock.acquire(timeout=1.0)
    found.lock.release()
    assert isinstance(model.lock, type(threading.Lock()))


def test_open_files_are_written_to_by_the_model_alone(tmp_path: Path) -> None:
    with (tmp_path / "log.txt").open("w") as text, (tmp_path / "log.bin").open("wb") as content:
        check(Logged(text, content))  # type: ignore[arg-type]
    assert (tmp_path / "log.txt").read_text() == "a pass\n"
    assert (tmp_path / "log.bin").read_bytes() == b"a pass"


def test_a_file_that_is_read_from_is_a_sentence() -> None:
    with (
        Path(os.devnull).open() as file,
        pytest.raises(ModelError, match="reads from an open file, its attribute 'vocabulary'"),
    ):
        copy_model(Holder(vocabulary=file))


def test_activations_of_the_clients_images_stay_where_they_are() -> None:
    model = KeepsActivations()
    found = check(model)
    copied = copy_model(model)
    assert isinstance(copied, KeepsActivations)
    assert copied.features is None
    assert [value.numel() for value in (*copied.maps.values(), *copied.seen)] == [0, 0]
    assert model.features is not None
    assert isinstance(found, KeepsActivations)


def test_a_buffer_with_a_graph_is_state() -> None:
    model = StatefulBuffer()
    model(IMAGES)
    assert torch.equal(copy_model(model).get_buffer("mean"), model.mean.detach())


def legacy(make: Callable[[nn.Module], object]) -> nn.Module:
    model = layers()
    with pytest.warns(FutureWarning):
        make(model[0])
    return model


def normed(make: Callable[..., object], **settings: Any) -> nn.Module:
    model = layers()
    make(model[0], **settings)
    return model


NORMED: dict[str, Callable[[], nn.Module]] = {
    "legacy weight_norm": lambda: legacy(torch.nn.utils.weight_norm),
    "legacy spectral_norm": lambda: normed(torch.nn.utils.spectral_norm),
    "weight_norm": lambda: normed(nn.utils.parametrizations.weight_norm),
    "spectral_norm": lambda: normed(nn.utils.parametrizations.spectral_norm),
    "orthogonal": lambda: normed(nn.utils.parametrizations.orthogonal),
    "pruned": lambda: normed(torch.nn.utils.prune.l1_unstructured, name="weight", amount=0.3),
}


@pytest.mark.parametrize("make", NORMED.values(), ids=NORMED)
def test_parametrised_weights_travel(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    kind = type(model[0])  # type: ignore[index]
    found = check(model)
    assert type(model[0]) is kind  # type: ignore[index]
    ours, theirs = (capture_gradient(one, IMAGES, LABELS).gradients for one in (found, model))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("make", [Locked, KeepsActivations, *NORMED.values()])
def test_clients_that_train_copy_any_of_them(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    model(IMAGES)
    before = weight_hash(model)
    update = train_locally(model, IMAGES, LABELS, local=LocalTraining(0.1))
    one = capture_gradient(model, IMAGES, LABELS)
    for name, delta in update.gradients.items():
        assert torch.allclose(delta, -0.1 * one.gradients[name], atol=1e-6), name
    assert weight_hash(model) == before


def numbers() -> Iterator[int]:
    yield 1


def test_what_cannot_be_copied_is_named() -> None:
    model = nn.Sequential(Holder(source=numbers()))
    with pytest.raises(
        ModelError, match=r"because of its attribute '0\.source' \(a generator\): TypeError: cannot pickle"
    ):
        copy_model(model)


def test_a_refusal_to_send_names_the_attribute_and_shows_no_number() -> None:
    model = Holder(source=numbers())

    def fail(value: object) -> None:
        if isinstance(value, Iterator):
            raise TypeError(f"no\n{IMAGES}")

    error = refuse_to_copy(model, fail, TypeError(f"{IMAGES}"))
    assert "its attribute 'source' (a generator): TypeError: no; take it off" in str(error)
    assert "tensor" not in str(error)


def test_a_plain_copy_is_what_it_was() -> None:
    model = nn.Sequential(layers(), nn.Linear(10, 10))
    ours, theirs = copy_model(model), copy.deepcopy(model)
    assert type(ours) is nn.Sequential
    assert weight_hash(ours) == weight_hash(theirs)
    assert ours.training == theirs.training

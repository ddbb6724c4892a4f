"""A model on its way to another process, without Ray."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torchvision
from gradinversion.capture import CapturedUpdate, ModelError, capture_gradient
from gradinversion.cluster import shipping
from ray import cloudpickle
from torch import Tensor, nn

Sent = list[tuple[CapturedUpdate, nn.Module]]


class Net(nn.Module):
    def __init__(self, **held: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(128, 10))
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


def update_of(model: nn.Module) -> CapturedUpdate:
    return capture_gradient(model, torch.rand(2, 3, 16, 16), torch.tensor([3, 7]))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What was handed to Ray, which refuses a string."""
    found: Sent = []

    def put(value: tuple[CapturedUpdate, nn.Module]) -> str:
        if any(isinstance(getattr(module, "text", None), str) for module in value[1].modules()):
            raise TypeError(f"Could not serialize the put value {value}:\n{value}")
        found.append(value)
        return "reference"

    monkeypatch.setattr(ray, "put", put)
    monkeypatch.setattr(shipping, "_not_found", type("", (), {"remote": staticmethod(lambda names: [])}))
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    return found


def test_what_is_sent_is_a_plain_copy_without_what_cannot_be_sent(sent: Sent) -> None:
    model = Net(lock=threading.Lock())
    assert shipping.put_inputs(update_of(model), nn.DataParallel(model)) == "reference"
    ((update, copied),) = sent
    assert isinstance(copied, Net)
    assert copied is not model
    assert update.mismatches(copied) == []


def test_a_refusal_shows_nothing_of_the_update(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    def dumps(value: object) -> bytes:
        if isinstance(value, str):
            raise TypeError("cannot pickle this text")
        return b""

    monkeypatch.setattr(cloudpickle, "dumps", dumps)
    model = nn.Sequential(Net(text="of a model"))
    with pytest.raises(ModelError) as refused:
        shipping.put_inputs(update_of(model), model)
    assert "because of its attribute '0.text' (a str): TypeError: cannot pickle this text; take it off" in str(
        refused.value
    )
    assert len(str(refused.value)) < 300
    assert refused.value.__suppress_context__


def test_a_model_that_cannot_be_built_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(reference: object) -> None:
        raise ray.exceptions.RaySystemError("System error: No module named 'net'") from ModuleNotFoundError(
            "No module named 'net'"
        )

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(
        ModelError, match=r"cannot be built where the attack runs \(ModuleNotFoundError: No module named"
    ):
        shipping.get_inputs("reference")


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that was added to the path: a module, a package beside it that the module uses, and one elsewhere."""
    layers = "nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(128, 10))"
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("")
    (tmp_path / "own_package" / "parts.py").write_text(f"from torch import nn\ndef layers():\n    return {layers}\n")
    (tmp_path / "own_net.py").write_text(
        "from own_package.parts import layers\nfrom torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.layers = layers()\n    def forward(self, images):\n"
        "        return self.layers(images)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in ("own_net", "own_package")]:
        del sys.modules[name]


def test_the_code_of_a_folder_that_was_added_to_the_path_is_found(beside: Path) -> None:
    from own_net import Net as Own  # type: ignore[import-not-found]

    found = {module.__name__ for module in shipping._own_modules(nn.Sequential(Own()))}
    assert found == {"own_net", "own_package"}


def test_installed_code_is_not_sent() -> None:
    for model in (nn.Linear(2, 2), torchvision.models.resnet18(weights=None)):
        assert shipping._own_modules(model) == []


def test_modules_that_a_process_does_not_find_are_told() -> None:
    assert shipping._find(["torch", "no_such_module_anywhere", "gradinversion"]) == ["no_such_module_anywhere"]


def test_code_is_sent_only_where_it_is_missing_and_only_for_once(
    beside: Path, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    from own_net import Net as Own

    model = Own()
    missing: list[str] = []
    monkeypatch.setattr(shipping, "_not_found", type("", (), {"remote": staticmethod(lambda names: missing)}))
    registered: list[set[str]] = []
    put = ray.put

    def watched(value: object) -> object:
        registered.append(set(cloudpickle.list_registry_pickle_by_value()))
        return put(value)

    monkeypatch.setattr(ray, "put", watched)
    shipping.put_inputs(update_of(model), model)
    missing += ["own_net", "own_package"]
    shipping.put_inputs(update_of(model), model)
    assert registered == [set(), {"own_net", "own_package"}]
    assert cloudpickle.list_registry_pickle_by_value() == set()

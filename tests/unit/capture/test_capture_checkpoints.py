"""Published checkpoints and Lightning's: what a model is built without, and settings beside the tensors."""

from __future__ import annotations

import argparse
import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.capture import ModelError, load_model, weight_hash
from gradinversion.capture.weights import load_state, read_weights
from torch import Tensor, nn

State = dict[str, Tensor]


@pytest.fixture
def attribute_dict(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], type]:
    """The class that Lightning keeps hyper-parameters in, under one of the names that it has had."""

    def make(module: str) -> type:
        for depth in range(module.count(".") + 1):
            name = ".".join(module.split(".")[: depth + 1])
            if name not in sys.modules:
                monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        kind = type("AttributeDict", (dict,), {"__module__": module})
        monkeypatch.setattr(importlib.import_module(module), "AttributeDict", kind, raising=False)
        return kind

    return make


def lightning(state: State, settings: object) -> dict[str, Any]:
    """The layout of a checkpoint of Lightning."""
    return {
        "epoch": 2,
        "global_step": 30,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 3}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "", "best_k_models": {}}},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": settings,
    }


@pytest.mark.parametrize(
    "settings", [{}, {"lr": 0.1, "name": "convnet"}, argparse.Namespace(lr=0.1), {"root": Path("/data")}]
)
def test_a_checkpoint_of_lightning_is_read_with_its_settings(settings: object, tmp_path: Path) -> None:
    model = load_model("convnet", seed=3)
    state = {f"net.{name}": value for name, value in model.state_dict().items()}
    torch.save(lightning(state, settings), tmp_path / "last.ckpt")
    assert weight_hash(load_model("convnet", weights=str(tmp_path / "last.ckpt"))) == weight_hash(model)


@pytest.mark.parametrize(
    "module",
    ["lightning.fabric.utilities.data", "lightning_fabric.utilities.data", "pytorch_lightning.utilities.parsing"],
)
def test_lightnings_own_dictionary_of_settings_is_read_without_lightning(
    module: str, attribute_dict: Callable[[str], type], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model("convnet", seed=3)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save(lightning(state, attribute_dict(module)(lr=0.1)), tmp_path / "last.ckpt")
    monkeypatch.undo()
    assert weight_hash(load_model("convnet", weights=str(tmp_path / "last.ckpt"))) == weight_hash(model)


class Foreign:
    """An object that nobody knows."""


def test_other_objects_are_refused_by_their_name(tmp_path: Path) -> None:
    torch.save(lightning({}, {"strategy": Foreign()}), tmp_path / "last.ckpt")
    with pytest.raises(ModelError, match=r"objects other than tensors \(.*Foreign\), which are never loaded; save"):
        read_weights(tmp_path / "last.ckpt")


def test_what_else_the_training_had_is_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    state = {f"net.{name}": value + 1 for name, value in model.state_dict().items()}
    other = {"loss.weight": torch.ones(10), "accuracy.total": torch.tensor(5), "net_head": torch.ones(1)}
    assert load_state(model, state | other, "'last.ckpt'") == ("accuracy.total", "loss.weight", "net_head")
    assert torch.equal(model.get_parameter("0.weight"), state["net.0.weight"])


def test_two_whole_models_in_one_file_are_not_guessed_between() -> None:
    model = nn.Linear(3, 3)
    state = {
        f"{attribute}.{name}": value for attribute in ("net", "average") for name, value in model.state_dict().items()
    }
    with pytest.raises(ModelError, match=r"'average\.bias' is not in the model"):
        load_state(model, state | {"loss.weight": torch.ones(1)}, "'last.ckpt'")


@pytest.mark.parametrize("architecture", ["googlenet", "inception_v3"])
def test_auxiliary_heads_of_published_weights_are_left_out(architecture: str, tmp_path: Path) -> None:
    import torchvision

    published = torchvision.models.get_model(architecture, num_classes=10, aux_logits=True, init_weights=False)
    torch.save(published.state_dict(), tmp_path / "published.pth")
    size = 75 if architecture == "inception_v3" else 64
    model = load_model(architecture, 10, size, str(tmp_path / "published.pth"))
    own = {name: value for name, value in published.state_dict().items() if not name.startswith(("aux", "AuxLogits"))}
    assert model.state_dict().keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    left_out = load_state(model, published.state_dict(), "the state")
    assert left_out
    assert all(name.startswith(("aux1.", "aux2.", "AuxLogits.")) for name in left_out)


def test_a_tensor_that_nobody_knows_is_still_an_error() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ModelError, match=r"'extra\.weight' is not in the model"):
        load_state(model, {**model.state_dict(), "extra.weight": torch.ones(1)}, "'w.pt'")


def test_a_model_that_has_such_a_head_needs_its_weights() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(3, 3), "aux1": nn.Linear(3, 3)})
    state = model.state_dict()
    with pytest.raises(ModelError, match=r"'aux1\.bias' is missing"):
        load_state(model, {name: value for name, value in state.items() if name != "aux1.bias"}, "'w.pt'")
    with pytest.raises(ModelError, match=r"'aux1\.extra' is not in the model"):
        load_state(model, {**state, "aux1.extra": torch.ones(1)}, "'w.pt'")

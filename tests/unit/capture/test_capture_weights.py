"""Weights from checkpoints as training scripts write them, and models of timm."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.capture import ModelError, load_model, weight_hash
from gradinversion.capture.weights import fit_names, load_state, read_weights
from torch import Tensor, nn

State = dict[str, Tensor]


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}, "param_groups": []}},
        lambda state: {"model": state, "lr": 0.1},
        lambda state: {"model": {"state_dict": state}},
        lambda state: prefixed(state, "_module."),
        lambda state: prefixed(state, "_orig_mod."),
        lambda state: prefixed(state, "module._orig_mod."),
        lambda state: {"state_dict": prefixed(state, "model.")},
        lambda state: {name: value.double() for name, value in state.items()},
    ],
)
def test_a_checkpoint_gives_the_same_model(tmp_path: Path, wrap: Callable[[State], dict[str, Any]]) -> None:
    source = load_model("convnet", seed=5)
    torch.save(wrap(source.state_dict()), tmp_path / "checkpoint.pt")
    loaded = load_model("convnet", weights=str(tmp_path / "checkpoint.pt"))
    assert weight_hash(loaded) == weight_hash(source)


def test_a_model_whose_own_names_look_like_a_wrapper_keeps_them() -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2)})
    state = {name: value + 1 for name, value in model.state_dict().items()}
    load_state(model, state, "the state")
    assert torch.equal(model.state_dict()["module.weight"], state["module.weight"])


def test_names_that_never_fit_are_told_as_they_are() -> None:
    state = {"encoder.a.scale": torch.zeros(1), "encoder.b.scale": torch.zeros(1)}
    assert fit_names(state, ["conv.weight"]) == state
    with pytest.raises(ModelError, match=r"'encoder\.a\.scale' is not in the model"):
        load_state(nn.Linear(1, 1), state, "'w.pt'")


def test_nothing_is_loaded_when_one_tensor_is_wrong() -> None:
    model = nn.Linear(2, 2)
    before = weight_hash(model)
    with pytest.raises(ModelError, match=r"'bias' has shape \(3,\) in the file and \(2,\) in the model"):
        load_state(model, {"weight": torch.ones(2, 2), "bias": torch.ones(3)}, "'w.pt'")
    assert weight_hash(model) == before


@pytest.mark.parametrize(
    "odd", [torch.zeros(2, device="meta"), torch.zeros(2).to_sparse(), torch.zeros(2, dtype=torch.complex64)]
)
def test_tensors_without_plain_values_are_a_sentence(odd: Tensor) -> None:
    with pytest.raises(ModelError, match="'bias' is not a plain tensor of real numbers"):
        load_state(nn.Linear(2, 2), {"weight": torch.ones(2, 2), "bias": odd}, "'w.pt'")


def test_a_checkpoint_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="holds no state dict"):
        read_weights(tmp_path / "w.pt")


def test_timm_models_are_built_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="timm is not installed: pip install 'gradinversion[timm]'")

    def refuse(*_: object) -> None:
        raise AssertionError("timm reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = load_model("timm:resnet10t", 7, 32)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert not model.training
    assert weight_hash(model) == weight_hash(load_model("timm:ResNet10t", 7, 32))
    assert weight_hash(model) != weight_hash(load_model("timm:resnet10t", 7, 32, seed=1))


def test_timm_transformers_take_the_size_of_the_images() -> None:
    pytest.importorskip("timm", reason="timm is not installed: pip install 'gradinversion[timm]'")
    assert load_model("timm:vit_tiny_patch16_224", 5, 32)(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("timm:resnet10", "has no model 'resnet10'; did you mean .*timm:resnet1"),
        ("timm:", "has no model ''"),
        ("timm:hf-hub:someone/something", "has no model 'hf-hub:someone/something'"),
        ("timm:local-dir:/tmp", "has no model"),
        ("timm:resnet18.nonsense", "Invalid pretrained tag"),
    ],
)
def test_timm_names_that_cannot_be_built_are_a_sentence(name: str, sentence: str) -> None:
    pytest.importorskip("timm", reason="timm is not installed: pip install 'gradinversion[timm]'")
    with pytest.raises(ModelError, match=sentence):
        load_model(name, 10, 32)


def test_timm_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ModelError, match=r"pip install 'gradinversion\[timm\]'"):
        load_model("timm:resnet10t")

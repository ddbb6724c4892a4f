"""The update in what NVFlare's clients send, by the format that NVFlare documents."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import CapturedUpdate, LocalTraining, ModelError, UpdateError, load_model
from gradinversion.capture.adapters.nvflare import capture_flmodel
from gradinversion.capture.adapters.state_dicts import capture_state_dicts
from torch import Tensor, nn

State = dict[str, Tensor]


class ParamsType(str, Enum):  # noqa: UP042 - as NVFlare has it
    """As in ``nvflare.app_common.abstract.fl_model``."""

    FULL = "FULL"
    DIFF = "DIFF"


@dataclass
class FLModel:
    """The attributes of NVFlare's own that are read, under their names."""

    params: Any = None
    params_type: Any = None
    meta: dict[str, Any] = field(default_factory=dict)


META = {"num_examples": 4, "lr": 0.1, "local_epochs": 1, "batch_size": 8, "NUM_STEPS_CURRENT_ROUND": 1}


@pytest.fixture(scope="module")
def states() -> tuple[nn.Module, State, State]:
    """A model, and its states before and after a step on four images."""
    model = load_model("convnet", image_size=16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model(images), torch.arange(4)).backward()
    optimizer.step()
    return model, before, {name: value.clone() for name, value in model.state_dict().items()}


def captured(model: nn.Module, sent: FLModel, result: FLModel, **options: Any) -> CapturedUpdate:
    return capture_flmodel(model, sent, result, image_shape=(3, 16, 16), **options)


def arrays(state: State) -> dict[str, Any]:
    return {name: value.numpy() for name, value in state.items()}


@pytest.mark.parametrize("kind", [ParamsType.DIFF, "DIFF", ParamsType.FULL, "FULL", None])
def test_whole_models_and_differences_give_the_same_update(states: tuple[nn.Module, State, State], kind: Any) -> None:
    model, before, after = states
    expected = capture_state_dicts(
        model, before, after, image_count=4, image_shape=(3, 16, 16), local=LocalTraining(0.1)
    )
    sent = {name: after[name] - before[name] for name in after} if kind in ("DIFF", ParamsType.DIFF) else after
    found = captured(model, FLModel(arrays(before), ParamsType.FULL), FLModel(arrays(sent), kind, META))
    assert found.gradients.keys() == expected.gradients.keys()
    for name, delta in expected.gradients.items():
        torch.testing.assert_close(found.gradients[name], delta, rtol=0, atol=2e-7)
    assert found.weight_hash == expected.weight_hash
    assert (found.image_count, found.local) == (4, LocalTraining(0.1))
    assert found.facts.local is not None
    assert [found.facts.local.learning_rate.assumed, found.facts.local.momentum.assumed] == [False, True]


def test_epochs_follow_from_the_steps_and_count_as_assumed(states: tuple[nn.Module, State, State]) -> None:
    model, before, after = states
    meta = {"lr": 0.1, "batch_size": 2, "NUM_STEPS_CURRENT_ROUND": 6}
    found = captured(model, FLModel(before), FLModel(after, None, meta), image_count=4).facts.local
    assert found is not None
    assert (found.epochs.value, found.epochs.assumed) == (3, True)
    assert "NUM_STEPS_CURRENT_ROUND" in found.epochs.source
    odd = captured(model, FLModel(before), FLModel(after, None, meta | {"NUM_STEPS_CURRENT_ROUND": 5}), image_count=4)
    assert odd.facts.local is not None
    assert odd.facts.local.epochs.value == 1


def test_what_was_captured_can_be_attacked_by_its_file(states: tuple[nn.Module, State, State], tmp_path: Path) -> None:
    model, before, after = states
    captured(model, FLModel(before), FLModel(after, None, META), model_id="convnet").save(
        tmp_path / "round.safetensors"
    )
    assert CapturedUpdate.load(tmp_path / "round.safetensors").model_id == "convnet"


@pytest.mark.parametrize(
    ("sent", "result", "message"),
    [
        ({"params_type": "DIFF"}, {}, "that was sent is a difference"),
        ({"params": None}, {}, "that was sent holds no weights by name"),
        ({}, {"params": [1, 2]}, "that came back holds no weights by name"),
        ({}, {"params": {"0.weight": "much"}}, "holds a str as '0.weight'"),
        ({}, {"params": {"nothing": torch.ones(1)}, "params_type": "DIFF"}, "a difference of 'nothing'"),
        ({}, {"meta": {}}, "lack 'num_examples'"),
        ({}, {"meta": META | {"lr": "fast"}}, "its learning rate is 'fast'"),
        ({}, {"meta": META | {"optimizer": "adam"}}, "its optimiser is 'adam'"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    states: tuple[nn.Module, State, State], sent: dict[str, Any], result: dict[str, Any], message: str
) -> None:
    model, before, after = states
    whole, back = {"params": before, **sent}, {"params": after, "meta": META, **result}
    with pytest.raises(UpdateError, match=message):
        captured(model, FLModel(**whole), FLModel(**back))


def test_another_model_is_refused(states: tuple[nn.Module, State, State]) -> None:
    _, before, after = states
    with pytest.raises(ModelError):
        captured(nn.Linear(2, 2), FLModel(before), FLModel(after, None, META))

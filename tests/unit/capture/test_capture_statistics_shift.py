"""Running statistics that a client's steps moved, and those that came back rounded or averaged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from gradinversion.capture import BatchNormMode, load_model
from gradinversion.capture.adapters import infer_batch_norm
from gradinversion.capture.statistics_shift import statistics_shift
from torch import Tensor, nn

State = Mapping[str, Tensor]


def network(momentum: float | None = 0.1) -> nn.Module:
    """Used for some batches, so that its statistics are numbers that no type of fewer bits has."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten()
    )
    for layer in (model[1], model[4]):
        assert isinstance(layer, nn.BatchNorm2d)
        layer.momentum = 0.1
    for _ in range(40):
        model(torch.rand(16, 3, 12, 12))
    for layer in (model[1], model[4]):
        assert isinstance(layer, nn.BatchNorm2d)
        layer.momentum = momentum
    return model


def averaged(state: State, count: int) -> State:
    return {name: sum(((1 / count) * tensor for _ in range(count)), torch.zeros(())) for name, tensor in state.items()}


def cast(kind: torch.dtype) -> Callable[[State], State]:
    return lambda state: {name: tensor.to(kind).float() for name, tensor in state.items()}


def uncounted(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if "num_batches" not in name}


ROUNDED: dict[str, Callable[[State], State]] = {
    "as they were": dict,
    "half": cast(torch.float16),
    "bfloat16": cast(torch.bfloat16),
    "half, kept": lambda state: {name: tensor.half() for name, tensor in state.items()},
    "mean of 3": lambda state: averaged(state, 3),
    "mean of 10": lambda state: averaged(state, 10),
    "mean of 3, without counters": lambda state: uncounted(averaged(state, 3)),
    "mean of 3 in half": lambda state: cast(torch.float16)(averaged(cast(torch.float16)(state), 3)),
}


@pytest.mark.parametrize("how", ROUNDED)
@pytest.mark.parametrize("counter", [40, 2501, 123457])
def test_rounding_and_averaging_are_no_step(how: str, counter: int) -> None:
    model = network()
    for name in ("1", "4"):
        model.get_buffer(f"{name}.num_batches_tracked").fill_(counter)
    shift = statistics_shift(model, ROUNDED[how](model.state_dict()))
    assert shift is not None
    assert not shift.moved
    assert infer_batch_norm(model, ROUNDED[how](model.state_dict())).value is BatchNormMode.EVAL


@pytest.mark.parametrize("momentum", [0.1, 0.01, None])
def test_a_step_moved_them(momentum: float | None) -> None:
    model = network(momentum)
    after = copy.deepcopy(model)
    after(0.5 * torch.rand(4, 3, 12, 12))
    for sent in (after.state_dict(), cast(torch.float16)(after.state_dict())):
        shift = statistics_shift(model, sent)
        assert shift is not None
        assert shift.moved
        assert infer_batch_norm(model, sent).value is BatchNormMode.TRAIN_SHARED


def test_a_step_of_images_like_the_earlier_ones_moved_them_too() -> None:
    model = load_model("resnet18")
    for _ in range(30):
        with torch.no_grad():
            model.train()(torch.rand(8, 3, 32, 32))
    after = copy.deepcopy(model)
    after(torch.rand(8, 3, 32, 32))
    for sent in (after.state_dict(), uncounted(after.state_dict())):
        shift = statistics_shift(model, sent)
        assert shift is not None
        assert shift.moved


def test_a_small_change_without_a_counter_is_assumed_to_be_rounding_and_a_large_one_is_none() -> None:
    model = network()

    def off(share: float, state: State) -> State:
        return {name: tensor * (1 + share) if "running" in name else tensor for name, tensor in state.items()}

    state = model.state_dict()
    assert infer_batch_norm(model, off(3e-3, uncounted(state))).assumed
    for small in (off(3e-3, state), off(1e-6, uncounted(state))):
        fact = infer_batch_norm(model, small)
        assert fact.value is BatchNormMode.EVAL
        assert fact.provenance == "read"
    for large in (off(0.1, state), off(0.1, uncounted(state))):
        assert infer_batch_norm(model, large).value is BatchNormMode.TRAIN_SHARED


def test_statistics_that_are_missing_or_of_another_shape() -> None:
    model = network()
    state = model.state_dict()
    assert statistics_shift(model, {name: one for name, one in state.items() if "running_mean" not in name}) is None
    shift = statistics_shift(model, {**uncounted(state), "1.running_mean": torch.zeros(3)})
    assert shift is not None
    assert shift.moved

"""Batch norm's step counters as clients send them: a count, or nothing, and never a reason to lose a round."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from gradinversion.capture import CapturedUpdate, LocalTraining, batch_norm_targets
from gradinversion.capture.adapters import capture_state_dicts
from gradinversion.capture.adapters.arrays import name_arrays
from gradinversion.capture.counters import settle_counters
from gradinversion.capture.weights import load_state
from torch import Tensor, nn

State = dict[str, Tensor]
COUNTER = "1.num_batches_tracked"


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))


def trained(server: nn.Module) -> State:
    client = copy.deepcopy(server).train()
    optimiser = torch.optim.SGD(client.parameters(), lr=0.1)
    F.cross_entropy(client(torch.rand(4, 3, 32, 32)), torch.arange(4)).backward()
    optimiser.step()
    return client.state_dict()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.tensor(7), 7),
        (torch.tensor(7.0), 7),
        (torch.tensor([7], dtype=torch.int32), 7),
        (torch.tensor([[7.0]], dtype=torch.float64), 7),
        (torch.tensor(256.0, dtype=torch.bfloat16), 256),
        (torch.tensor(19968.0, dtype=torch.bfloat16), None),  # 20,001 is rounded to this
        (torch.tensor(2.5), None),
        (torch.tensor(-1.0), None),
        (torch.tensor(float("nan")), None),
        (torch.zeros(0), None),
        (torch.zeros(2), None),
    ],
)
def test_a_counter_is_a_count_or_left_out(given: Tensor, expected: int | None) -> None:
    found = settle_counters({"bn.num_batches_tracked": given, "bn.weight": given})
    assert found["bn.weight"] is given
    if expected is None:
        assert found.keys() == {"bn.weight"}
    else:
        counter = found["bn.num_batches_tracked"]
        assert (counter.dtype, counter.shape, int(counter)) == (torch.int64, (), expected)


CASTS: dict[str, Callable[[State], State]] = {
    "as it is": lambda sent: sent,
    "float32": lambda sent: {name: tensor.float() for name, tensor in sent.items()},
    "float64": lambda sent: {name: tensor.double() for name, tensor in sent.items()},
    "shape (0,)": lambda sent: {**sent, COUNTER: torch.zeros(0)},
    "shape (1,)": lambda sent: {**sent, COUNTER: torch.ones(1)},
    "missing": lambda sent: {name: tensor for name, tensor in sent.items() if name != COUNTER},
    "not finite": lambda sent: {**sent, COUNTER: torch.tensor(float("inf"))},
}
COUNTED = {"as it is", "float32", "float64", "shape (1,)"}


@pytest.mark.parametrize("cast", CASTS)
def test_what_is_captured_can_be_loaded_and_has_the_same_statistics(cast: str, tmp_path: Path) -> None:
    server = build()
    sent = trained(server)
    update = capture_state_dicts(
        server,
        CASTS[cast](server.state_dict()),
        CASTS[cast](sent),
        image_count=4,
        image_shape=(3, 32, 32),
        local=LocalTraining(0.1),
    )
    update.save(tmp_path / "update.safetensors")
    loaded = CapturedUpdate.load(tmp_path / "update.safetensors")
    assert loaded.buffers is not None
    assert {name: int(b) for name, b in loaded.buffers.items() if name == COUNTER} == (
        {COUNTER: 1} if cast in COUNTED else {}
    )
    assert loaded.mismatches(server) == []
    (found,) = batch_norm_targets(loaded, server).values()
    assert found.exact
    plain = capture_state_dicts(
        server, server.state_dict(), sent, image_count=4, image_shape=(3, 32, 32), local=LocalTraining(0.1)
    )
    assert torch.allclose(found.mean, batch_norm_targets(plain, server)["1"].mean, atol=1e-5)


@pytest.mark.parametrize("counter", [torch.tensor(3.0), torch.zeros(0), torch.tensor([3.0])])
def test_a_file_of_an_older_version_is_read(counter: Tensor, tmp_path: Path) -> None:
    server = build()
    update = capture_state_dicts(
        server, server.state_dict(), trained(server), image_count=4, image_shape=(3, 32, 32), local=LocalTraining(0.1)
    )
    path = tmp_path / "update.safetensors"
    update.save(path)
    with safetensors.safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    assert json.loads(metadata["gradinversion"])["buffers"]
    tensors[f"buffer/{COUNTER}"] = counter
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    buffers = CapturedUpdate.load(path).buffers
    assert buffers is not None
    assert (COUNTER in buffers) == (counter.numel() == 1)


def test_lists_of_arrays_may_hold_any_counter() -> None:
    server = build()
    for counter in (torch.zeros(0), torch.ones(1), torch.tensor(1.0)):
        arrays = list({**server.state_dict(), COUNTER: counter}.values())
        assert name_arrays(arrays, server, "client 3").keys() == server.state_dict().keys()


def test_weights_files_may_hold_any_counter_or_one_too_many() -> None:
    server = build()
    state = {**server.state_dict(), COUNTER: torch.zeros(0), "0.num_batches_tracked": torch.tensor(5)}
    assert load_state(build(), state, "'w.pt'") == ()

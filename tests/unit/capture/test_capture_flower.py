"""The recorder around real Flower strategies of both kinds; a real simulation runs in the end-to-end tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.capture import (
    BatchNormMode,
    CapturedUpdate,
    LocalTraining,
    Normalisation,
    Provenance,
    UpdateError,
    load_model,
    told,
)
from gradinversion.capture.adapters.flower import FlowerRecorder
from gradinversion.capture.told_config import ToldConfig
from gradinversion.target.weight_deltas import as_attackable, describe
from torch import Tensor

REASON = "flwr is not installed: pip install 'gradinversion[flower]'"
State = dict[str, Tensor]

# Flower's command line imports names of click that are on their way out.
pytestmark = pytest.mark.filterwarnings("ignore:'click:DeprecationWarning")


@pytest.fixture(autouse=True, scope="module")
def _no_telemetry() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLWR_TELEMETRY_ENABLED", "0")
        yield


@pytest.fixture(autouse=True)
def _a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are made inside a run; the strategies here are called without one."""
    if importlib.util.find_spec("flwr"):
        identity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
        for name in ("_task_id", "_run_id", "_node_id"):
            monkeypatch.setattr(identity, name, 1)


@pytest.fixture
def before() -> State:
    return load_model("convnet").state_dict()


def moved(before: State, by: float) -> State:
    return {name: value + by if value.is_floating_point() else value for name, value in before.items()}


def recorder(tmp_path: Path, **options: Any) -> FlowerRecorder:
    return FlowerRecorder(load_model("convnet", seed=3), tmp_path / "out", image_shape=(3, 32, 32), **options)


def not_recorded(recording: FlowerRecorder) -> list[str]:
    """The problems beside facts that had to be assumed."""
    return [problem for problem in recording.problems if "nobody told and nothing shows" not in problem]


class Nodes:
    """The part of a grid that configuring a round needs: who is there."""

    def get_node_ids(self) -> list[int]:
        return [11, 12]


def strategy(**options: Any) -> Any:
    serverapp = pytest.importorskip("flwr.serverapp.strategy", reason=REASON)
    return serverapp.FedAvg(fraction_evaluate=0.0, **options)


def asked(strategy: Any, before: State, number: int = 1, **config: float) -> dict[int, Any]:
    """The messages of one round, by node."""
    from flwr.app import ArrayRecord, ConfigRecord

    messages = strategy.configure_train(number, ArrayRecord(before), ConfigRecord({**config}), Nodes())
    return {message.metadata.dst_node_id: message for message in messages}


def reply(message: Any, state: State | list[Any], **metrics: float) -> Any:
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    numbers = MetricRecord({"num-examples": 8, **metrics})
    return Message(content=RecordDict({"arrays": ArrayRecord(state), "metrics": numbers}), reply_to=message)


def failure(message: Any, reason: str) -> Any:
    from flwr.app import Error, Message

    return Message(error=Error(code=0, reason=reason), reply_to=message)


def test_a_message_based_round_is_recorded_and_its_result_unchanged(tmp_path: Path, before: State) -> None:
    recording = recorder(tmp_path, client=12)
    results = []
    for one in (strategy(), recording.wrap(strategy())):
        messages = asked(one, before, lr=0.1, epochs=2)
        replies = (reply(messages[node], moved(before, by), loss=by) for node, by in ((11, 0.5), (12, 0.25)))
        results.append(one.aggregate_train(1, replies))
    (plain, plain_metrics), (recorded, metrics) = results
    assert recorded.to_torch_state_dict().keys() == before.keys()
    assert all(
        torch.equal(value, plain.to_torch_state_dict()[key]) for key, value in recorded.to_torch_state_dict().items()
    )
    assert metrics == plain_metrics
    assert not_recorded(recording) == []
    update = CapturedUpdate.load(tmp_path / "out" / "round-0001-client-12.safetensors")
    assert torch.equal(update.gradients["13.weight"], moved(before, 0.25)["13.weight"] - before["13.weight"])
    assert update.local == LocalTraining(0.1, epochs=2)
    assert update.batch_norm is BatchNormMode.TRAIN_SHARED
    update.require_match(load_model("convnet", weights=str(tmp_path / "out" / "round-0001-server.safetensors")))


def test_lists_of_arrays_are_named_by_their_place(tmp_path: Path, before: State) -> None:
    recording = recorder(tmp_path)
    wrapped = recording.wrap(strategy())
    lists = [[v.numpy() for v in state.values()] for state in (before, moved(before, 0.5))]
    messages = asked(wrapped, lists[0])  # type: ignore[arg-type]
    wrapped.aggregate_train(1, [reply(messages[11], lists[1])])
    assert not_recorded(recording) == []
    update = CapturedUpdate.load(recording.files[0])
    assert torch.equal(update.gradients["0.bias"], moved(before, 0.5)["0.bias"] - before["0.bias"])


def test_clients_that_fail_or_are_not_asked_are_a_sentence(tmp_path: Path, before: State) -> None:
    recording = recorder(tmp_path, client=12)
    wrapped = recording.wrap(strategy())
    messages = asked(wrapped, before)
    broken = failure(messages[12], "Traceback (most recent call last):\n  File ...\nRuntimeError: CUDA out of memory'>")
    arrays, _ = wrapped.aggregate_train(1, [reply(messages[11], moved(before, 0.5)), broken])
    assert arrays is not None
    other = recorder(tmp_path, client=99)
    wrapped = other.wrap(strategy())
    wrapped.aggregate_train(1, [reply(asked(wrapped, before)[11], moved(before, 0.5))])
    assert recording.files == other.files == []
    assert recording.problems == [
        "round 1, client 12: it failed, so nothing was recorded: RuntimeError: CUDA out of memory"
    ]
    assert other.problems[0].startswith("round 1: client 99 was not asked to train (asked: 1")


def test_only_the_chosen_rounds_are_looked_at(tmp_path: Path, before: State) -> None:
    recording = recorder(tmp_path, rounds={2}, client={"partition-id": 1})
    wrapped = recording.wrap(strategy())
    for number in (1, 2, 3):
        messages = asked(wrapped, before, number)
        replies = [reply(m, moved(before, 0.1 * number), **{"partition-id": node - 11}) for node, m in messages.items()]
        wrapped.aggregate_train(number, replies)
    assert [path.name for path in recording.files] == ["round-0002-client-12.safetensors"]
    assert not_recorded(recording) == []


def test_what_a_strategy_of_your_own_overrides_stays_in_force(tmp_path: Path, before: State) -> None:
    base = type(strategy())

    class Own(base):  # type: ignore[misc, valid-type]
        def start(self, *_: Any, **__: Any) -> Any:
            self.best = 1.0
            messages = self.configure_train(1, *self.sent)
            return self.aggregate_train(1, [reply(message, moved(before, 0.5)) for message in messages])

        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            assert self.best == 1.0
            return super().aggregate_train(server_round, replies)

    from flwr.app import ArrayRecord, ConfigRecord

    given = Own(fraction_evaluate=0.0)
    given.sent = (ArrayRecord(before), ConfigRecord(), Nodes())
    recording = recorder(tmp_path)
    wrapped = recording.wrap(given)
    assert isinstance(wrapped, Own)
    wrapped.start()
    assert len(recording.files) == 2
    assert not hasattr(given, "best")
    given.start()
    assert len(recording.files) == 2


QUICKSTART = {
    "num-server-rounds": 3,
    "fraction-evaluate": 0.5,
    "local-epochs": 2,
    "learning-rate": 0.1,
    "batch-size": 4,
}


def test_the_settings_of_the_run_tell_what_no_message_does(tmp_path: Path, before: State) -> None:
    """In the quickstart's layout only the learning rate is sent; the clients read the rest from ``run_config``."""
    stated = ToldConfig(momentum="0.9", loss="cross_entropy").facts()
    recording = recorder(tmp_path, client=12, run_config=QUICKSTART, stated=stated, normalisation=((0.5,) * 3,) * 2)
    wrapped = recording.wrap(strategy())
    wrapped.aggregate_train(1, [reply(asked(wrapped, before, lr=0.05)[12], moved(before, 0.25), train_loss=2.0)])
    update = CapturedUpdate.load(recording.files[0])
    facts = dict(update.facts.items())
    assert update.local == LocalTraining(0.05, epochs=2, batch_size=4, momentum=0.9)
    assert facts["learning_rate"] == told(0.05, "the server's message to the client")
    assert facts["epochs"] == told(2, "the settings of the run")
    assert facts["batch_size"] == told(4, "the settings of the run")
    assert facts["momentum"] == told(0.9, "the user")
    assert facts["normalisation"] == told(Normalisation((0.5,) * 3, (0.5,) * 3), "the user")
    (problem,) = recording.problems
    assert problem.startswith("round 1, client 12: nobody told and nothing shows 8 decisive facts")
    listed = problem.split("assumed are ")[1]
    for name in ("reduction", "loss_scale", "label_smoothing", "penalty", "weight_decay", "shuffled", "defences"):
        assert f"(told.{name})" in listed
    for name in ("epochs", "batch_size", "momentum", "normalisation", "learning_rate", "batch_norm", "image_count"):
        assert f"(told.{name})" not in listed


def test_without_the_settings_of_the_run_nothing_is_taken_for_a_fact(tmp_path: Path, before: State) -> None:
    recording = recorder(tmp_path, client=12)
    wrapped = recording.wrap(strategy())
    wrapped.aggregate_train(1, [reply(asked(wrapped, before, lr=0.05)[12], moved(before, 0.25))])
    update = CapturedUpdate.load(recording.files[0])
    assumed = {name for name, fact in update.facts.items() if fact.provenance is Provenance.ASSUMED}
    assert {"epochs", "batch_size", "momentum", "normalisation", "weight_decay"} <= assumed
    (problem,) = recording.problems
    for name in ("epochs", "batch_size", "normalisation"):
        assert f"(told.{name})" in problem
    sentence = describe(update, as_attackable(update, load_model("convnet")), labels_given=False)
    assert "The client sent" not in sentence
    assert sentence.startswith("The update is taken for the weight delta of one step of SGD")
    assert "Nobody told the client's epochs, batch size and weight decay" in sentence


class Proxy:
    def __init__(self, cid: str) -> None:
        self.cid = cid


class Manager:
    """The part of a client manager that configuring a round needs."""

    def num_available(self) -> int:
        return 2

    def sample(self, **_: Any) -> list[Proxy]:
        return [Proxy("a"), Proxy("b")]


def test_a_fit_based_round_is_recorded_and_its_result_unchanged(tmp_path: Path, before: State) -> None:
    legacy = pytest.importorskip("flwr.server.strategy", reason=REASON)
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays

    def fitted(by: float, lr: float) -> Any:
        arrays = ndarrays_to_parameters([value.numpy() for value in moved(before, by).values()])
        return FitRes(Status(Code.OK, ""), arrays, 8, {"lr": lr})

    recording = recorder(tmp_path, client="b", local=None)
    sums = []
    for one in (legacy.FedAvg(), recording.wrap(legacy.FedAvg(on_fit_config_fn=lambda _: {"local_epochs": 3}))):
        parameters = ndarrays_to_parameters([value.numpy() for value in before.values()])
        one.configure_fit(1, parameters, Manager())
        results = [(Proxy("a"), fitted(0.5, 0.1)), (Proxy("b"), fitted(0.25, 0.2))]
        sums.append(parameters_to_ndarrays(one.aggregate_fit(1, results, [])[0]))
    assert all((one == other).all() for one, other in zip(*sums, strict=True))
    assert not_recorded(recording) == []
    update = CapturedUpdate.load(recording.files[0])
    assert torch.equal(update.gradients["0.bias"], moved(before, 0.25)["0.bias"] - before["0.bias"])
    assert update.local == LocalTraining(0.2, epochs=3)

    failed = FitRes(Status(Code.FIT_NOT_IMPLEMENTED, "no fit"), parameters, 0, {})
    one.configure_fit(2, parameters, Manager())
    one.aggregate_fit(2, results[:1], [(Proxy("b"), failed)])
    one.configure_fit(3, parameters, Manager())
    one.aggregate_fit(3, results[:1], [RuntimeError("connection lost")])
    assert not_recorded(recording) == [
        "round 2, client b: it failed, so nothing was recorded: no fit",
        "round 3: client b was asked to train and sent nothing back, so nothing was recorded "
        "(client of unknown id failed: connection lost)",
    ]


def test_what_is_no_strategy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UpdateError, match="a dict is no Flower strategy"):
        recorder(tmp_path).wrap({})


@pytest.mark.parametrize(("process", "told"), [("flwr-serverapp", True), ("run.py", False)])
def test_where_a_relative_folder_lies_is_said_in_a_process_of_flwr_run(
    process: str, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [f"/usr/bin/{process}"])
    FlowerRecorder(torch.nn.Linear(2, 2), "captured", image_shape=(3, 4, 4))
    assert (f"Captured updates go to {tmp_path / 'captured'}" in caplog.text) is told
    caplog.clear()
    FlowerRecorder(torch.nn.Linear(2, 2), tmp_path / "captured", image_shape=(3, 4, 4))
    assert caplog.text == ""

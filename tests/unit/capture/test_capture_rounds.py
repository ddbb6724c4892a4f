"""Recording rounds of federated learning: arrays in transit, facts of local training, and what goes wrong."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradinversion.capture import (
    BatchNormMode,
    CapturedUpdate,
    Defence,
    LocalTraining,
    Normalisation,
    Provenance,
    UpdateError,
    load_model,
    told,
)
from gradinversion.capture.adapters.arrays import decode_array, name_arrays
from gradinversion.capture.adapters.facts import Said, local_facts, read_said
from gradinversion.capture.adapters.rounds import Order, Reply, RoundRecorder, Weights
from gradinversion.capture.told_config import ToldConfig
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

State = dict[str, Tensor]
METRICS: dict[str, object] = {"num-examples": 8}


def npy(array: ArrayLike) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def weights(state: State, named: bool = True) -> Weights:
    return Weights(tuple(npy(value.numpy()) for value in state.values()), tuple(state) if named else None)


@pytest.fixture
def before() -> State:
    return load_model("convnet").state_dict()


@pytest.fixture
def after(before: State) -> State:
    generator = torch.Generator().manual_seed(1)
    moved = {k: v + 0.01 * torch.randn(v.shape, generator=generator) for k, v in before.items() if v.ndim}
    return {name: moved[name].abs() if name in moved else value for name, value in before.items()}


def recorder(tmp_path: Path, **options: Any) -> RoundRecorder:
    return RoundRecorder(load_model("convnet", seed=3), tmp_path / "out", image_shape=(3, 32, 32), **options)


def not_recorded(recording: RoundRecorder) -> list[str]:
    """The problems beside facts that had to be assumed."""
    return [problem for problem in recording.problems if "nobody told and nothing shows" not in problem]


@pytest.mark.parametrize("named", [True, False])
def test_a_round_becomes_an_update_and_the_weights_that_it_belongs_to(
    tmp_path: Path, before: State, after: State, named: bool
) -> None:
    recording = recorder(tmp_path, client=7, model_id="convnet")
    orders = [Order(name, weights(before, named), {"lr": 0.1, "local_epochs": 2, "batch-size": 4}) for name in "67"]
    recording.record(3, orders, [Reply("6", weights(before), METRICS), Reply("7", weights(after, named), METRICS)])
    assert not_recorded(recording) == []
    assert [path.name for path in recording.files] == ["round-0003-client-7.safetensors"]
    update = CapturedUpdate.load(recording.files[0])
    assert torch.equal(update.gradients["13.weight"], after["13.weight"] - before["13.weight"])
    assert update.local == LocalTraining(0.1, epochs=2, batch_size=4)
    assert (update.image_count, update.batch_norm) == (8, BatchNormMode.TRAIN_SHARED)
    update.require_match(load_model("convnet", weights=str(tmp_path / "out" / "round-0003-server.safetensors")))


def test_every_client_is_recorded_when_none_is_chosen(tmp_path: Path, before: State, after: State) -> None:
    recording = recorder(tmp_path, local=LocalTraining(0.1, batch_size=32))
    replies = [Reply("a/b", weights(after), METRICS), Reply("c", weights(after), METRICS)]
    recording.record(
        1,
        [Order("a/b", weights(before), {}), Order("c", weights(load_model("convnet", seed=5).state_dict()), {})],
        replies,
    )
    assert not_recorded(recording) == []
    # The second was sent other weights, so it has a file of its own; its batch is no larger than its data.
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "round-0001-client-a_b.safetensors",
        "round-0001-client-c-server.safetensors",
        "round-0001-client-c.safetensors",
        "round-0001-server.safetensors",
    ]
    assert CapturedUpdate.load(recording.files[0]).local == LocalTraining(0.1)


def test_a_client_is_chosen_by_what_its_metrics_say(tmp_path: Path, before: State, after: State) -> None:
    recording = recorder(tmp_path, client={"partition-id": 1})
    orders = [Order(name, weights(before), {}) for name in "xy"]
    recording.record(1, orders, [Reply(n, weights(after), {**METRICS, "partition-id": i}) for i, n in enumerate("xy")])
    assert [path.name for path in recording.files] == ["round-0001-client-y.safetensors"]
    recording.record(2, orders, [Reply("x", weights(after), METRICS), Reply("y", None, {}, "out of memory")])
    assert not_recorded(recording) == [
        "round 2: none of the 2 replies has partition-id=1 in its metrics, so nothing was recorded "
        "(client y failed: out of memory)"
    ]


def test_parameters_alone_leave_batch_norm_private(tmp_path: Path, before: State, after: State) -> None:
    names = [name for name, _ in load_model("convnet").named_parameters()]
    recording = recorder(tmp_path)
    sent = [weights({name: state[name] for name in names}, named=False) for state in (before, after)]
    recording.record(1, [Order("1", sent[0], {})], [Reply("1", sent[1], METRICS)])
    update = CapturedUpdate.load(recording.files[0])
    assert update.batch_norm is BatchNormMode.TRAIN_PRIVATE
    assert update.local == LocalTraining(None)


@pytest.mark.parametrize(
    ("replies", "sentence"),
    [
        ([], "round 1: client 7 was asked to train and sent nothing back"),
        ([Reply("7", None, {}, "CUDA out of memory")], "round 1, client 7: it failed, .* CUDA out of memory"),
        ([Reply("7", Weights((npy(np.zeros(3)),) * 5), METRICS)], "sent 5 arrays, and the model has 18 trained param"),
        ([Reply("7", Weights((npy(np.zeros(3)),) * 18), METRICS)], r"shape \(3,\) at place 0, .* '0.weight' of shape"),
        ([Reply("7", Weights((b"\x80\x04pickle",), ("0.weight",)), METRICS)], "array 0 of the client is not an array"),
        ([Reply("7", Weights((npy(np.zeros(3)),), ("0.weight",)), METRICS)], "parameter '0.bias' is missing"),
    ],
)
def test_what_a_client_gets_wrong_is_a_sentence_and_never_an_error(
    tmp_path: Path, before: State, replies: list[Reply], sentence: str
) -> None:
    recording = recorder(tmp_path, client=7)
    recording.record(1, [Order("7", weights(before), {})], replies)
    assert recording.files == []
    (problem,) = recording.problems
    assert "\n" not in problem
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(problem)


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ({"loss": 1.0}, "its metrics lack 'num-examples', the number of images (they hold loss)"),
        ({"num-examples": 0}, "it trained on 0 images"),
        ({"num-examples": 2.5}, "must be a whole number"),
        ({"num-examples": [8]}, "must be a number"),
        ({"num-examples": 10**400}, "too large"),
        ({**METRICS, "lr": 0.0}, "learning rate is 0.0"),
        ({**METRICS, "lr": "fast"}, "learning rate is 'fast'; it must be a number"),
        ({**METRICS, "local-epochs": 1.5}, "epochs is 1.5; it must be a whole number"),
    ],
)
def test_facts_that_cannot_be_are_a_sentence(
    tmp_path: Path, before: State, after: State, metrics: dict[str, object], sentence: str
) -> None:
    recording = recorder(tmp_path)
    recording.record(1, [Order("7", weights(before), {})], [Reply("7", weights(after), metrics)])
    (problem,) = recording.problems
    assert problem.startswith("round 1, client 7: ")
    assert sentence in problem


def test_a_round_without_the_chosen_client_says_who_was_asked(tmp_path: Path, before: State, after: State) -> None:
    recording = recorder(tmp_path, client=9)
    recording.record(4, [Order("7", weights(before), {})], [Reply("7", weights(after), METRICS)])
    assert recording.problems == ["round 4: client 9 was not asked to train (asked: 7), so nothing was recorded"]


def test_a_server_of_another_model_is_a_sentence(tmp_path: Path, before: State, after: State) -> None:
    recording = recorder(tmp_path)
    other = {name: value for name, value in before.items() if name != "13.bias"}
    wrong = before | {"13.bias": torch.zeros(3)}
    for number, state in enumerate((other, wrong), 1):
        recording.record(number, [Order("7", weights(state), {})], [Reply("7", weights(after), METRICS)])
    recording.record(3, [], [Reply("7", weights(after), METRICS)])
    assert "the server's weights do not fit the model: '13.bias' is missing" in recording.problems[0]
    assert "size mismatch for 13.bias" in recording.problems[1]
    assert "did not ask it to train" in recording.problems[2]


def test_settings_that_cannot_be_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UpdateError, match="batch_norm is 'evil'"):
        recorder(tmp_path, batch_norm="evil")
    with pytest.raises(UpdateError, match="normalisation is for 1 channels"):
        recorder(tmp_path, normalisation=((0.5,), (0.5,)))
    with pytest.raises(UpdateError, match="there is no fact 'momentun'; the facts are batch_norm, "):
        recorder(tmp_path, stated={"momentun": told(0.9)})
    with pytest.raises(UpdateError, match=r"the fact momentum is 0\.9; give it with its provenance"):
        recorder(tmp_path, stated={"momentum": 0.9})
    (tmp_path / "out").rmdir()
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UpdateError, match="cannot be made"):
        recorder(tmp_path)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(3, dtype=np.int64),
        np.zeros((0, 2), dtype=np.float16),
        np.array([True, False]),
    ],
)
def test_arrays_arrive_as_they_were_sent(array: NDArray[Any]) -> None:
    assert torch.equal(decode_array(npy(array), "it"), torch.from_numpy(array.astype(array.dtype.newbyteorder("="))))


def header(text: str, content: bytes = b"") -> bytes:
    padded = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode() + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY\x01\x00",
        b"\x93NUMPY\x09\x00" + b"\x00" * 20,
        npy(np.zeros(100))[:-1],
        npy(np.zeros(3)) + b"x",
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1), }", b"1234"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"12345678"),
        header("{'descr': '<U1', 'fortran_order': False, 'shape': (1,), }", b"1234"),
        header("{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }", b"12345678"),
        header("__import__('os').abort()"),
        header("(" * 100),
    ],
)
def test_hostile_arrays_are_a_sentence(content: bytes) -> None:
    with pytest.raises(UpdateError, match=r"^array 0 [^\n]+$"):
        decode_array(content, "array 0")


def test_a_list_may_leave_out_the_counters_of_batch_norm(before: State) -> None:
    model = load_model("convnet")
    names = [name for name in before if not name.endswith("num_batches_tracked")]
    assert list(name_arrays([before[name] for name in names], model, "it")) == names


def test_later_sources_win_and_hyphens_do_not_matter() -> None:
    run, message, metrics = (
        Said("the run", {"learning-rate": 0.5, "LOCAL_EPOCHS": 3, "shuffle": True, "normalization": "0.5/0.25"}),
        Said("the message", {"LR": 0.1, "batch_size": 4}),
        Said("the metrics", {"lr": 0.2, "Weight-Decay": 0.01, "momentum": 0.9, "loss": 0.3, "label-smoothing": 0.1}),
    )
    found = read_said((run, message, metrics))
    assert found == {
        "learning_rate": told(0.2, "the metrics"),
        "epochs": told(3, "the run"),
        "batch_size": told(4, "the message"),
        "shuffled": told(True, "the run"),
        "normalisation": told(Normalisation((0.5,) * 3, (0.25,) * 3), "the run"),
        "weight_decay": told(0.01, "the metrics"),
        "momentum": told(0.9, "the metrics"),
        "label_smoothing": told(0.1, "the metrics"),
    }
    local = local_facts(found)
    assert local.training == LocalTraining(0.2, 3, 4, 0.9, 0.01, True)
    # A message wins over the run's settings under another of the names too.
    assert read_said((run, message))["learning_rate"] == told(0.1, "the message")
    assert local_facts(read_said((message,))).momentum.provenance is Provenance.ASSUMED


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"optimizer": "adam"}, "its optimiser is 'adam'; only local steps of plain SGD"),
        ({"optimizer": "torch.optim.AdamW"}, "'torch.optim.AdamW'; only"),
        ({"nesterov": True}, "its nesterov is True; only"),
        ({"proximal-mu": 0.1}, "its proximal-mu is 0.1; only"),
        ({"normalisation": "soft"}, "told.normalisation=soft: give as many means"),
        ({"label-smoothing": 1.5}, "the label smoothing is 1.5"),
        ({"shuffle": 2}, "its shuffled is '2'; it must be true or false"),
    ],
)
def test_a_training_that_the_record_cannot_tell_is_not_recorded(
    tmp_path: Path, before: State, after: State, settings: dict[str, object], sentence: str
) -> None:
    recording = recorder(tmp_path, run_config=settings)
    recording.record(1, [Order("7", weights(before), {})], [Reply("7", weights(after), METRICS)])
    assert recording.files == []
    assert sentence in recording.problems[0]


def test_plain_sgd_by_any_name_is_recorded(tmp_path: Path, before: State, after: State) -> None:
    settings = {"optimizer": "torch.optim.SGD", "nesterov": False, "proximal-mu": 0.0, "dampening": 0}
    recording = recorder(tmp_path, run_config=settings)
    recording.record(1, [Order("7", weights(before), {})], [Reply("7", weights(after), METRICS)])
    assert len(recording.files) == 1


def test_clipping_that_a_message_tells_of_is_assumed_to_be_all(tmp_path: Path, before: State, after: State) -> None:
    """Flower's strategies for differential privacy send the norm; what mods the client runs beside it nobody knows."""
    recording = recorder(tmp_path)
    recording.record(1, [Order("7", weights(before), {"clipping_norm": 2.0})], [Reply("7", weights(after), METRICS)])
    fact = CapturedUpdate.load(recording.files[0]).facts.defences
    assert (fact.value, fact.provenance) == ((Defence("clip", 2.0),), Provenance.ASSUMED)


def test_all_facts_told_leave_no_problem(tmp_path: Path, before: State, after: State) -> None:
    words = {
        "normalisation": "0.5/0.5",
        "dropout": "false",
        "loss": "cross_entropy",
        "reduction": "mean",
        "loss_scale": "1",
        "label_smoothing": "0",
        "penalty": "none",
        "learning_rate": "0.1",
        "epochs": "2",
        "batch_size": "32",
        "momentum": "0",
        "weight_decay": "0",
        "shuffled": "true",
        "defences": "none",
        "sampling": "fixed",
    }
    settings = {"label-smoothing": 0.1, "epochs": 9}
    recording = recorder(tmp_path, stated=ToldConfig(**words).facts(), run_config=settings)
    recording.record(1, [Order("7", weights(before), {"lr": 0.3})], [Reply("7", weights(after), METRICS)])
    assert recording.problems == []
    update = CapturedUpdate.load(recording.files[0])
    # What is stated wins over the settings, and a batch is no larger than the data.
    assert update.facts.label_smoothing == told(0.0, "the user")
    assert update.local == LocalTraining(0.1, 2, None, shuffled=True)
    assert not any(fact.assumed for _, fact in update.facts.items())


def test_clients_of_a_round_with_the_same_gaps_share_a_sentence(tmp_path: Path, before: State, after: State) -> None:
    recording = recorder(tmp_path)
    orders = [Order(name, weights(before), {}) for name in "67"]
    recording.record(3, orders, [Reply(name, weights(after), METRICS) for name in "67"])
    (problem,) = recording.problems
    assert problem.startswith("round 3, clients 6, 7: nobody told and nothing shows")


def test_a_model_that_cannot_be_tried_never_stops_the_training(tmp_path: Path, before: State, after: State) -> None:
    model = load_model("convnet")

    def refuse(*_: object) -> None:
        raise KeyError("not now")

    model.register_forward_pre_hook(refuse)
    recording = RoundRecorder(model, tmp_path / "out", image_shape=(3, 32, 32))
    recording.record(1, [Order("7", weights(before), {})], [Reply("7", weights(after), METRICS)])
    assert len(recording.files) == 1
    # Whether it draws random numbers is not known, so that dropout is among what was assumed.
    assert "(told.dropout)" in recording.problems[0]

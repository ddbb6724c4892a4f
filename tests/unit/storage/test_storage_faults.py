"""Rounds in a bucket whose server is slow, refuses, loses its answers and breaks connections off."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import boto3
import pytest
import torch
from gradinversion.benchmarks.faulty_s3 import FaultyS3, Weather
from gradinversion.coordinator.checkpoints import CheckpointStore, state_name
from gradinversion.storage.folders import PassingError, Storage
from gradinversion.storage.tensor_file import read_tensors, write_state

_PATIENCE_SECONDS = 600.0
_IDENTITY = {"seed": 0}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    logging.getLogger("s3fs").setLevel(logging.CRITICAL)
    server = FaultyS3(Weather())
    with server.running() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="faults")
        yield server
        server.weather = Weather()
        # What moto holds belongs to the process: the next test begins with nothing.
        bucket = boto3.resource("s3").Bucket("faults")
        bucket.objects.all().delete()
        bucket.delete()


def save_round(store: CheckpointStore, storage: Storage, index: int) -> None:
    state = {"images": torch.full((500,), float(index))}
    states = {seed: write_state(storage, state_name(index, seed, "w"), state, index) for seed in range(2)}
    store.commit(index, states, {"round": index}, {"consensus": state["images"]})


@pytest.mark.parametrize(
    ("kind", "weather"),
    [
        ("refused", Weather(refuses=0.3)),
        ("answer lost", Weather(forgets=0.3)),
        ("within the answer", Weather(cuts_answers=0.3)),
        ("within the body", Weather(cuts_bodies=0.3)),
        ("refused", Weather(0.05, 0.1, 0.1, 0.1, 0.1)),
    ],
)
def test_every_round_is_whole_in_spite_of(kind: str, weather: Weather, server: FaultyS3) -> None:
    storage = Storage("s3://faults/run", patience=_PATIENCE_SECONDS)
    store = CheckpointStore(storage, _IDENTITY)
    server.weather = weather
    store.claim()
    for index in range(3):
        save_round(store, storage, index)
        found, messages = CheckpointStore(storage, _IDENTITY).latest()
        assert found is not None
        assert (found.round, messages) == (index, ())
        assert found.tensors["consensus"].tolist() == [index] * 500
        assert read_tensors(storage, found.states[1])["images"].tolist() == [index] * 500
    assert weather.met[kind] > 0


@pytest.mark.parametrize("weather", [Weather(refuses=1), Weather(forgets=1), Weather(cuts_answers=1, cuts_bodies=1)])
@pytest.mark.parametrize("ask", [lambda s: s.write("a/b", b"12345"), lambda s: s.read("a/kept", 9)])
def test_a_server_that_only_fails_is_one_sentence(
    weather: Weather, ask: Callable[[Storage], object], server: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    Storage("s3://faults/run").write("a/kept", b"content")
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    server.weather = weather
    with pytest.raises(PassingError) as error:
        ask(Storage("s3://faults/run"))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("s3://faults/run/a/")
    server.weather = Weather()
    assert Storage("s3://faults/run").read("a/kept", 9) == b"content"

"""The storage against an S3-compatible server on this machine's loopback."""

from __future__ import annotations

import logging
import pickle
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from gradinversion.coordinator.checkpoints import CheckpointStore, FencedError, state_name
from gradinversion.storage.folders import AbsentError, PassingError, Storage, StorageError
from gradinversion.storage.tensor_file import StateFile, read_tensors, write_state
from moto.server import ThreadedMotoServer

IDENTITY = {"seed": 0}


class Server:
    """Moto's S3 on a port of its own; its content outlives a stop."""

    def __init__(self) -> None:
        self._port = 0
        self._running: ThreadedMotoServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._running = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._running.start()
        self._port = self._running.get_host_and_port()[1]

    def stop(self) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection to another machine fails the test's operation."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            assert address[0] in ("127.0.0.1", "::1"), f"a connection to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = Server()
    for name, value in {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    # The server's content belongs to the process, not to the server.
    with urllib.request.urlopen(f"{server.url}/moto-api/reset", data=b""):
        pass
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield server
    server.stop()


@pytest.fixture
def storage(server: Server) -> Storage:
    return Storage("s3://bucket/runs/one/")


def save_round(store: CheckpointStore, storage: Storage, index: int) -> dict[int, StateFile]:
    states = {
        seed: write_state(storage, state_name(index, seed, "w"), {"images": torch.full((50,), index)}, index)
        for seed in range(3)
    }
    store.commit(index, states, {"messages": ["ünïcode"]}, {"consensus": torch.full((3,), index)})
    return states


def test_files_are_written_read_listed_and_removed(storage: Storage) -> None:
    assert storage.url == "s3://bucket/runs/one"
    assert storage.names() == []
    digest = storage.write("a/b/file.bin", b"content")
    assert digest == storage.digest("a/b/file.bin")
    assert storage.read("a/b/file.bin", 7) == b"content"
    assert storage.size("a/b/file.bin") == 7
    storage.write("a/b/file.bin", b"new")
    assert storage.read("a/b/file.bin", 7) == b"new"
    storage.write("a/empty", b"")
    assert storage.read("a/empty", 0) == b""
    assert storage.names("a") == ["b", "empty"]
    Storage("s3://bucket/runs/one").write("a/other", b"x")
    assert storage.names() == ["a"]
    assert storage.names("a") == ["b", "empty", "other"]
    with pytest.raises(StorageError, match=r"s3://bucket/runs/one/a/b/file\.bin has 3 bytes; at most 2 are read"):
        storage.read("a/b/file.bin", 2)
    with pytest.raises(AbsentError, match=r"s3://bucket/runs/one/none cannot be read: .+\.$"):
        storage.read("none", 9)
    storage.remove("a/b")
    storage.remove("none")
    assert storage.names("a") == ["empty", "other"]
    storage.remove("a")
    assert storage.names() == []


def test_a_large_file_is_hashed_in_parts(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradinversion.storage.folders._CHUNK_BYTES", 2**16)
    content = torch.randint(0, 256, (300_001,), dtype=torch.uint8).numpy().tobytes()
    assert storage.write("large", content) == storage.digest("large")


def test_two_whole_rounds_are_kept_and_a_torn_one_is_named(server: Server, storage: Storage) -> None:
    store = CheckpointStore(storage, IDENTITY)
    assert store.claim() == 1
    for index in range(4):
        states = save_round(store, storage, index)
    assert storage.names("checkpoints") == ["owner.json", "round-000002", "round-000003"]
    checkpoint, messages = CheckpointStore(storage, IDENTITY).latest()
    assert checkpoint is not None
    assert messages == ()
    assert (checkpoint.round, checkpoint.states) == (3, states)
    assert checkpoint.tensors["consensus"].tolist() == [3, 3, 3]
    assert read_tensors(storage, checkpoint.states[2])["images"][0] == 3
    whole = storage.read(states[1].name, states[1].size)
    for torn in (whole[:-8], whole[:-1] + b"x", b""):
        boto3.client("s3").put_object(Bucket="bucket", Key=f"runs/one/{states[1].name}", Body=torn)
        checkpoint, messages = CheckpointStore(storage, IDENTITY).latest()
        assert checkpoint is not None
        assert checkpoint.round == 2
        assert len(messages) == 1
        assert f"s3://bucket/runs/one/{states[1].name}" in messages[0]


def test_an_old_coordinator_is_fenced(storage: Storage) -> None:
    old, new = CheckpointStore(storage, IDENTITY), CheckpointStore(Storage(storage.url), IDENTITY)
    assert (old.claim(), new.claim()) == (1, 2)
    with pytest.raises(FencedError):
        save_round(old, storage, 0)
    save_round(new, storage, 0)


def test_a_server_that_is_away_for_a_while_is_waited_for(
    server: Server, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write("file", b"old")
    server.stop()
    with pytest.raises(
        PassingError, match=r"s3://bucket/runs/one/file cannot be written: .*127\.0\.0\.1.*\.$"
    ) as error:
        storage.write("file", b"new")
    assert "\n" not in str(error.value)
    patient = Storage(storage.url, patience=600.0)
    told: list[str | None] = []
    patient.listener = told.append
    monkeypatch.setattr("gradinversion.storage.folders._TELL_SECONDS", 0.0)
    digests: list[str] = []
    writer = threading.Thread(target=lambda: digests.append(patient.write("file", b"new")))
    writer.start()
    while not told:
        writer.join(0.05)
        assert writer.is_alive()
    server.start()
    writer.join()
    assert told[1:] == [None]
    assert digests == [storage.digest("file")]
    assert storage.read("file", 3) == b"new"


def test_a_bucket_that_is_missing_is_a_sentence(server: Server) -> None:
    for operation in (lambda s: s.write("file", b"x"), lambda s: s.read("file", 9)):
        with pytest.raises(AbsentError, match=r"s3://none/out/file cannot be (written|read): .+\.$") as error:
            operation(Storage("s3://none/out", patience=600.0))
        assert "\n" not in str(error.value)


def test_missing_credentials_are_a_sentence(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match=r"file cannot be written: .*credentials") as error:
        Storage("s3://bucket/out", patience=600.0).write("file", b"x")
    assert "\n" not in str(error.value)


def test_it_is_shared_by_threads_and_travels_to_processes(storage: Storage) -> None:
    threads = [threading.Thread(target=storage.write, args=(f"file-{index}", b"x")) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pickle.loads(pickle.dumps(storage)).names() == [f"file-{index}" for index in range(4)]

"""Which Ray is joined, and what is said where there is none. Ray itself is not started."""

from __future__ import annotations

import os
import signal
import socket
from types import FrameType
from typing import Any

import pytest
import ray
from gradinversion.cluster import ClusterError, LostError, connection


@pytest.fixture
def nobody() -> str:
    """An address at which nobody listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def inits(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``ray.init`` was called with; it does nothing."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: found.append(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return found


def test_an_address_where_nobody_answers_is_refused_at_once(
    inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, nobody: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    with pytest.raises(ClusterError, match=nobody), connection.connected():
        pass
    assert inits == []


def test_a_cluster_that_refuses_is_never_replaced_by_this_machine(
    inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(**options: Any) -> None:
        inits.append(options)
        raise ConnectionError("InvalidAuthToken")

    monkeypatch.setattr(ray, "init", refuses)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(ClusterError, match="RAY_AUTH_MODE=token"), connection.connected():
            pass
    assert len(inits) == 1


def test_what_a_cluster_that_is_gone_left_behind_is_not_meant(
    inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, nobody: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(connection, "address_of_this_machine", lambda: nobody)
    with connection.connected() as joined:
        assert not joined
    assert [options["address"] for options in inits] == ["local"]


def test_who_only_joins_starts_nothing(inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with connection.connected(only_join=True) as joined:
        assert not joined
    assert inits == []


@pytest.mark.parametrize(("needed", "given"), [(0, True), (10 * 2**30, False)])
def test_a_small_run_takes_a_small_object_store(
    inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, needed: int, given: bool
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with connection.connected(needed):
        pass
    assert ("object_store_memory" in inits[0]) is given


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_an_address_of_another_kind_is_refused_with_the_right_one(
    inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match="HOST:PORT"), connection.connected():
        pass
    assert inits == []


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:99999", "1.2.3.4.5"])
def test_an_address_that_ray_cannot_read_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    if ray.is_initialized():
        pytest.skip("this process has a Ray")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=f"at {address}"), connection.connected():
        pass


@pytest.mark.parametrize(
    ("raised", "kind", "part"),
    [
        (OSError("AF_UNIX path length cannot exceed 107 bytes: /a/b"), ClusterError, "RAY_TMPDIR=/tmp"),
        (Exception("The current node timed out during startup."), LostError, "timed out during startup"),
        (RuntimeError("Failed to start GCS.\nLast 1 lines of error files:"), LostError, "Failed to start GCS"),
    ],
)
def test_a_ray_that_does_not_start_is_told_in_a_sentence(
    inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, raised: Exception, kind: type[ClusterError], part: str
) -> None:
    def fails(**options: Any) -> None:
        raise raised

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(ClusterError, match=part) as found, connection.connected():
        pass
    assert type(found.value) is kind
    assert len(str(found.value).splitlines()) == 1


def test_a_local_run_is_for_its_user_on_this_machine_alone(
    inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with connection.connected():
        assert os.environ["RAY_AUTH_MODE"] == "token"
    assert inits[0]["_node_ip_address"] == "127.0.0.1"
    assert not inits[0]["include_dashboard"]
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_whoever_handles_sigterm_does_so_after_ray_has_come(
    inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mine(number: int, frame: FrameType | None) -> None: ...

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(ray, "init", lambda **_: signal.signal(signal.SIGTERM, lambda *_: None))
    before = signal.signal(signal.SIGTERM, mine)
    try:
        with connection.connected():
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)

"""Which Ray is joined, and what is said where there is none. Ray itself is not started."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import ray
from gradinversion.cluster import ClusterError, connection


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
    monkeypatch.setattr(connection, "find_bootstrap_address", lambda _: nobody)
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

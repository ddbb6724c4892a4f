"""A cluster that a run would go to is known before Ray is loaded."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradinversion.cluster import ray_internals
from gradinversion.command import entry
from gradinversion.command.named_cluster import cluster_is_named


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where ``ray start`` leaves its address."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


@pytest.mark.parametrize(("address", "named"), [("local", False), ("auto", True), ("head:6379", True)])
def test_what_the_environment_names(monkeypatch: pytest.MonkeyPatch, left: Path, address: str, named: bool) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster_is_named() is named


def test_one_that_was_begun_on_this_machine_and_answers(left: Path) -> None:
    assert not cluster_is_named()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        left.write_text(address)
        assert ray_internals.address_of_this_machine() == address  # Ray looks in the same file
        assert cluster_is_named()
    assert not cluster_is_named()


@pytest.mark.parametrize("content", ["", "nonsense", "127.0.0.1:99999", "127.0.0.1:six"])
def test_what_is_no_address_is_none(left: Path, content: str) -> None:
    left.write_text(content)
    assert not cluster_is_named()


@pytest.mark.parametrize(("address", "copies"), [("local", 1), ("head:6379", 0)])
def test_the_command_makes_a_process_that_forks_for_a_ray_of_its_own_alone(
    monkeypatch: pytest.MonkeyPatch, left: Path, address: str, copies: int
) -> None:
    made = []

    @contextlib.contextmanager
    def noted() -> Iterator[None]:
        made.append(1)
        yield

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(entry, "fork_server", noted)
    assert entry.run(["attack", "agents.count=0"]) == entry.REFUSED
    assert len(made) == copies

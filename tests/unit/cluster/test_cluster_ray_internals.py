"""The parts of Ray that it promises to nobody: this test says when one has moved. Ray itself is not started."""

from __future__ import annotations

import ast
import inspect
import os
import stat
from pathlib import Path

import pytest
import ray
from gradinversion.cluster import ray_internals
from ray._private import ray_constants, services, state
from ray._private.node import Node
from ray._private.parameter import RayParams

PACKAGE = Path(ray_internals.__file__).parents[1]
TOKEN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def test_ray_still_has_what_is_used() -> None:
    assert callable(state.state.get_draining_nodes)
    assert callable(services.find_bootstrap_address)
    assert ray_constants.PROCESS_TYPE_RAYLET == "raylet"
    assert "self.all_processes" in inspect.getsource(Node)
    assert hasattr(ray._private.worker, "_global_node")
    for part in ("has_token", "get_raw_token", "reset_cache"):
        assert hasattr(ray._raylet.AuthenticationTokenLoader, part)  # type: ignore[attr-defined]


def test_where_no_ray_was_started_there_is_no_raylet() -> None:
    if ray.is_initialized():
        pytest.skip("this process has a Ray")
    assert ray_internals.raylet() is None


def test_meanwhile_this_machine_has_its_loopback_address_alone() -> None:
    if ray.is_initialized():
        pytest.skip("this process has a Ray, whose address it is")
    with ray_internals.loopback_alone():
        assert services.get_node_ip_address() == ray_internals.LOOPBACK
        assert services.resolve_ip_for_localhost(ray_internals.LOOPBACK) == ray_internals.LOOPBACK


def test_a_ray_has_a_token_of_its_own_that_only_its_user_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of somebody's cluster")
    before = {name: os.environ.get(name) for name in TOKEN}
    loader = ray._raylet.AuthenticationTokenLoader.instance()  # type: ignore[attr-defined]
    tokens = []
    for _ in range(2):
        with ray_internals.token_of_its_own():
            path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            mode = ray._raylet.get_authentication_mode()  # type: ignore[attr-defined]
            assert mode == ray._raylet.AuthenticationMode.TOKEN  # type: ignore[attr-defined]
            assert loader.get_raw_token() == path.read_text()
            tokens.append(path.read_text())
        assert not path.exists()
        assert {name: os.environ.get(name) for name in TOKEN} == before
    assert len(tokens[0]) == 64
    assert tokens[0] != tokens[1]


def test_workers_run_another_script_meanwhile() -> None:
    with ray_internals.lean(Path("/a/script.py")):
        assert RayParams().worker_path == "/a/script.py"
        assert RayParams(worker_path="given").worker_path == "given"
    assert RayParams().worker_path is None
    with ray_internals.lean(None):
        assert RayParams().worker_path is None
    assert (Path(services.__file__).parent / "workers" / "default_worker.py").is_file()


def test_a_lean_ray_lacks_what_nobody_uses_and_is_lean_meanwhile_alone() -> None:
    starts = Node.start_api_server
    with ray_internals.lean(None):
        assert RayParams().no_monitor
        assert not RayParams().include_log_monitor
        assert Node.start_api_server is not starts
        with pytest.raises(AssertionError, match="dashboard"):
            Node.start_api_server(None, include_dashboard=True, raise_on_failure=False)  # type: ignore[arg-type]
    assert not RayParams().no_monitor
    assert Node.start_api_server is starts
    # These are what decides.
    source = inspect.getsource(Node)
    assert "if not self._ray_params.no_monitor" in source
    assert "if self._ray_params.include_log_monitor" in source
    assert "self.start_api_server(\n            include_dashboard=" in source


def test_no_other_module_of_the_package_reaches_into_ray() -> None:
    found = []
    for folder in ("agents", "audit", "capture", "cluster", "coordinator", "peeling", "settings", "sweep", "target"):
        for path in (PACKAGE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                named = isinstance(node, ast.ImportFrom) and str(node.module).startswith("ray._")
                reached = isinstance(node, ast.Attribute) and ast.unparse(node).startswith("ray._")
                if named or reached:
                    found.append(path.name)
    assert set(found) == {"ray_internals.py"}

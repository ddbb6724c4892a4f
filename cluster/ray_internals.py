"""What the attack uses of Ray that Ray promises to nobody. All of it is here; a test says when a part has moved."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray
from ray._private import ray_constants
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.services import find_bootstrap_address

LOOPBACK = "127.0.0.1"
# Compiled, and without types.
_raylet: Any = ray._raylet


def draining_nodes() -> frozenset[str]:
    """Ids (hex) of the nodes that will be taken away soon (``ray drain-node``, a cloud's notice, a pod's end)."""
    # Ray has no public way to ask; its own training library asks like this.
    return frozenset(ray._private.state.state.get_draining_nodes())


def address_of_this_machine() -> str | None:
    """Where ``ray start`` on this machine said that the cluster is; None where there was none."""
    found = find_bootstrap_address(None)
    return None if found is None else str(found)


def raylet() -> int | None:
    """The number of the process that manages the Ray that was started here; None where none was."""
    node: Any = ray._private.worker._global_node
    found = {} if node is None else node.all_processes
    return next((int(one.process.pid) for one in found.get(ray_constants.PROCESS_TYPE_RAYLET, [])), None)


@contextmanager
def loopback_alone() -> Iterator[None]:
    """A Ray that is started meanwhile listens on the loopback interface alone, as it does on a Mac of itself.

    ``ray.init`` must be given ``_node_ip_address=LOOPBACK``, which recent versions otherwise replace by an address that
    other machines reach.
    """
    with patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False):
        yield


@contextmanager
def lean(worker_script: Path | None) -> Iterator[None]:
    """A Ray that is started meanwhile is without processes that nobody uses in a run on one machine.

    These are the one that looks for machines to add, the one that sends logs to where nobody reads them, and the server
    of the dashboard, which without its pages only tells Ray's makers of its use. None of their numbers is missed:
    Prometheus is served by another process.

    Args:
        worker_script: What is run in place of Ray's ``default_worker.py``, with the same arguments; None: that one.
    """
    initialise = RayParams.__init__

    def leaner(self: Any, *arguments: Any, **named: Any) -> None:
        initialise(self, *arguments, **named)
        self.no_monitor, self.include_log_monitor = True, False
        if worker_script is not None and not self.worker_path:
            self.worker_path = str(worker_script)

    def no_server(self: Any, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
        assert not include_dashboard, "the dashboard was asked for"

    with patch.object(RayParams, "__init__", leaner), patch.object(Node, "start_api_server", no_server):
        yield


@contextmanager
def token_of_its_own() -> Iterator[None]:
    """A Ray that is started and ended meanwhile asks everybody for a token that only this user can read.

    It is a new one for each Ray, in a file of mode 0600 that goes with it. The environment is put back afterwards.
    """
    with tempfile.TemporaryDirectory(prefix="gradinversion-") as folder:
        path = Path(folder) / "token"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        with patch.dict(os.environ, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}):
            os.environ.pop("RAY_AUTH_TOKEN", None)  # it would be taken in place of the file
            _read_again()
            yield
    _read_again()


def _read_again() -> None:
    """Have this process look at the environment and at the token anew: Ray looks once, when it is imported."""
    _raylet.Config.initialize("")
    _raylet.AuthenticationTokenLoader.instance().reset_cache()

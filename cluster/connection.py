"""The connection to Ray: the cluster that is there, or one of our own on this machine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.services import find_bootstrap_address

from ..refusal import Refusal

_OBJECT_STORE_BYTES = 200 * 2**20


class ClusterError(Refusal, RuntimeError):
    """Ray cannot run the attack, or lost a part of it."""


@contextmanager
def connected(store_bytes: int = 0, only_join: bool = False) -> Iterator[bool]:
    """A connection to Ray; whether to a cluster that was there before, and stays.

    Args:
        store_bytes: That the object store must hold, where Ray is started here.
        only_join: Start none.
    """
    if ray.is_initialized():
        yield True
        return
    # Without it Ray 2.x warns in every process that a future release leaves CUDA_VISIBLE_DEVICES alone.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    local = quiet | {"address": "local", "include_dashboard": False}
    if store_bytes <= _OBJECT_STORE_BYTES:
        local["object_store_memory"] = _OBJECT_STORE_BYTES  # else Ray's own choice: 30 % of the memory
    address = _cluster_address()
    if address is not None:
        _join(address, quiet)
    joined = address is not None
    if not joined and not only_join:
        ray.init(**local)
    try:
        yield joined
    finally:
        ray.shutdown()


def _join(address: str, options: dict[str, Any]) -> None:
    """Connect to a cluster.

    Raises:
        ClusterError: It is not there or refuses. Never quietly on this machine alone what was meant for a cluster.
    """
    # Ray itself takes minutes to find that nobody is there.
    if not _answers(address):
        raise ClusterError(f"No Ray cluster answers at {address}: start it, or give another RAY_ADDRESS.")
    try:
        ray.init(**options, address=address)
    except ConnectionError as error:
        raise ClusterError(
            f"The Ray cluster at {address} did not let us in ({str(error).splitlines()[0]}): if it asks for a token, "
            "set RAY_AUTH_MODE=token and have its file here."
        ) from None


def _answers(address: str) -> bool:
    """Whether there is a listener; True where the address names none that can be tried."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return True
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except OSError:
        return False


def _cluster_address() -> str | None:
    """``RAY_ADDRESS``, or where ``ray start`` on this machine said the cluster is; None for a cluster of our own."""
    given = os.environ.get("RAY_ADDRESS")
    if given:
        return None if given == "local" else given
    found = find_bootstrap_address(None)
    # What a cluster that is gone left behind is not meant.
    return str(found) if found is not None and _answers(str(found)) else None

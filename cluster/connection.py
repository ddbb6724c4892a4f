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

_OBJECT_STORE_BYTES = 200 * 2**20


class ClusterError(RuntimeError):
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
    joined = address is not None
    try:
        if joined:
            ray.init(**quiet, address=address)
    except ConnectionError as error:
        # Never quietly on this machine alone what was meant for a cluster.
        if os.environ.get("RAY_ADDRESS") or _answers(str(address)):
            raise ClusterError(
                f"The Ray cluster at {address} did not let us in ({str(error).splitlines()[0]}): is it up, and does it "
                "ask for a token (RAY_AUTH_MODE=token and the token's file)?"
            ) from None
        joined = False  # the address of a cluster that is gone
    if not joined and not only_join:
        ray.init(**local)
    try:
        yield joined
    finally:
        ray.shutdown()


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return True
    except (OSError, ValueError):
        return False


def _cluster_address() -> str | None:
    """``RAY_ADDRESS``, or where ``ray start`` on this machine said the cluster is; None for a cluster of our own."""
    address = os.environ.get("RAY_ADDRESS") or find_bootstrap_address(None)
    return None if address in (None, "local") else str(address)

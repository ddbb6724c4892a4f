"""The connection to Ray: the cluster that is there, or one of our own on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray

from ..forking import fork_server, handing_over
from .failures import ClusterError, LostError, first_line, in_one_sentence
from .orphans import ended_with_this_process
from .ray_internals import (
    LOOPBACK,
    address_of_this_machine,
    lean,
    loopback_alone,
    raylet,
    token_of_its_own,
)

_OBJECT_STORE_BYTES = 200 * 2**20
_LAST_PORT = 65535


@contextmanager
def connected(store_bytes: int = 0, only_join: bool = False) -> Iterator[bool]:
    """A connection to Ray; whether to a cluster that was there before, and stays.

    Args:
        store_bytes: That the object store must hold, where Ray is started here.
        only_join: Start none.

    Raises:
        ClusterError: There is no such cluster, it refuses, or Ray cannot be started here.
        LostError: What Ray raised meanwhile.
    """
    with in_one_sentence():
        if ray.is_initialized():
            yield True
        else:
            with _connection(store_bytes, only_join) as joined:
                yield joined


@contextmanager
def _connection(store_bytes: int, only_join: bool) -> Iterator[bool]:
    # Without it Ray 2.x warns in every process that a future release leaves CUDA_VISIBLE_DEVICES alone.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = _cluster_address()
    with ExitStack() as stack:
        with _own_end():
            if address is not None:
                _join(address, quiet)
            elif not only_join:
                _start(stack, store_bytes, quiet)
        stack.callback(ray.shutdown)
        yield address is not None


def _start(stack: ExitStack, store_bytes: int, options: dict[str, Any]) -> None:
    """A Ray of our own, which nobody else reaches: on loopback, for whoever has its token."""
    local = options | {"address": "local", "include_dashboard": False, "_node_ip_address": LOOPBACK}
    if store_bytes <= _OBJECT_STORE_BYTES:
        local["object_store_memory"] = _OBJECT_STORE_BYTES  # else Ray's own choice: 30 % of the memory
    stack.enter_context(token_of_its_own())
    stack.enter_context(fork_server())
    try:
        with loopback_alone(), handing_over() as script, lean(script):
            ray.init(**local)
        stack.enter_context(ended_with_this_process(raylet()))
    except OSError as error:
        # Among them a path that is too long for a socket, of which Ray makes some in its folder.
        raise ClusterError(
            f"Ray cannot start in its folder ({first_line(error)}): name a short path on a disk with room, such as "
            "RAY_TMPDIR=/tmp."
        ) from None
    # Ray raises what it finds, down to a bare Exception where its processes are late.
    except Exception as error:
        ray.shutdown()
        raise LostError(
            f"Ray did not start on this machine ({first_line(error)}): where the machine is busy, or low on memory or "
            "disk, try again later; Ray's logs are in the newest folder of /tmp/ray."
        ) from None


@contextmanager
def _own_end() -> Iterator[None]:
    """Whoever has said what a SIGTERM means in this process is not overruled by what Ray put in its place meanwhile."""
    here = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if here else signal.SIG_DFL
    try:
        yield
    finally:
        if callable(handler):
            # Though Python may take it for the one that is there: Ray's C++ has its own below.
            signal.signal(signal.SIGTERM, handler)


def _join(address: str, options: dict[str, Any]) -> None:
    """Connect to a cluster.

    Raises:
        ClusterError: It is not there or refuses. Never quietly on this machine alone what was meant for a cluster.
    """
    if "://" in address:
        raise ClusterError(
            f"RAY_ADDRESS={address} cannot be used: give the address of the head itself, as HOST:PORT (often port "
            "6379), or 'auto' on a machine of the cluster."
        )
    # Ray itself takes minutes to find that nobody is there.
    if not _answers(address):
        raise ClusterError(f"No Ray cluster answers at {address}: start it, or give another RAY_ADDRESS.")
    try:
        ray.init(**options, address=address)
    # An address of another form is a ValueError, a token that is wrong a RayError, a head that is late an Exception.
    except Exception as error:
        ray.shutdown()
        raise ClusterError(
            f"The Ray cluster at {address} did not let us in ({first_line(error)}): give the address as HOST:PORT, and "
            "if it asks for a token, set RAY_AUTH_MODE=token and have its file here."
        ) from None


def _answers(address: str) -> bool:
    """Whether there is a listener; True where the address names none that can be tried."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return True
    if int(port) > _LAST_PORT:
        return False
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
    found = address_of_this_machine()
    # What a cluster that is gone left behind is not meant.
    return found if found is not None and _answers(found) else None

"""What the processes of a run listen on, and whether anybody gets in: Linux, through ``/proc``."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

_LISTENING = "0A"
_SOCKET = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True)
class Process:
    """One of a session."""

    number: int
    command: str


@dataclass(frozen=True)
class Listener:
    """A TCP port that a process listens on."""

    host: str
    port: int
    process: int

    @property
    def is_loopback(self) -> bool:
        """Whether no other machine reaches it."""
        address = ipaddress.ip_address(self.host)
        inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (inner or address).is_loopback


def session(leader: int) -> list[Process]:
    """The processes of a session that are alive."""
    found = []
    for entry in Path("/proc").iterdir():
        # A process may end while it is looked at.
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, _, _, its_session = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:4]
            if entry.name.isdigit() and int(its_session) == leader and state != "Z":
                command = (entry / "cmdline").read_text().replace("\0", " ")
                found.append(Process(int(entry.name), command))
    return found


def listeners(processes: Iterable[int]) -> list[Listener]:
    """All TCP ports that these processes listen on."""
    owners = {inode: process for process in processes for inode in _sockets(process)}
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            (
                _,
                local,
                _,
                state,
                *_,
            ) = fields = line.split()
            if state == _LISTENING and fields[9] in owners:
                host, port = local.split(":")
                found.append(Listener(_address(host), int(port, 16), owners[fields[9]]))
    return found


def _sockets(process: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):
                if match := _SOCKET.fullmatch(os.readlink(entry)):
                    yield match[1]


def _address(text: str) -> str:
    """Of the kernel's hexadecimal words, each in the machine's own order of bytes."""
    words = [int(text[place : place + 8], 16) for place in range(0, len(text), 8)]
    return str(ipaddress.ip_address(struct.pack(f"={len(words)}I", *words)))


def address_beyond_loopback() -> str | None:
    """An address of this machine that others would use; None where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: the kernel only chooses a way
        except OSError:
            return None
        host: str = probe.getsockname()[0]
    return None if ipaddress.ip_address(host).is_loopback else host


def answers(host: str, port: int) -> bool:
    """Whether a connection is accepted there."""
    try:
        with socket.create_connection((host, port), timeout=5):
            return True
    except OSError:
        return False


def lets_in(address: str, token: str | None) -> bool:
    """Whether Ray's control service at this address answers who shows this token, or none."""
    shown = None if token is None else (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(address) as channel:
        # Made when it is imported, so without types.
        messages: Any = gcs_service_pb2
        ask = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetClusterId
        try:
            ask(messages.GetClusterIdRequest(), metadata=shown, timeout=30)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise
            return False
    return True

"""The machine under the benchmark of the cluster: a Ray of its own, processes, memory, load."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch

MIB = 2**20
PROC = Path("/proc")


@contextlib.contextmanager
def local_ray(object_store: int = 100 * MIB, settings: Mapping[str, str] | None = None) -> Iterator[None]:
    """A Ray on this machine, for one part of the benchmark.

    Args:
        object_store: Bytes; room for all candidates twice, or Ray writes them to the disk.
        settings: Environment variables of Ray's processes.
    """
    before = dict(os.environ)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.update(settings or {})
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=max(object_store, 100 * MIB),
    )
    try:
        yield
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": ray.__version__,
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def load() -> float:
    """Processes that wanted to run during the last minute, this benchmark's among them."""
    return round(os.getloadavg()[0], 2)


def parent(process: int) -> int:
    """Of a process."""
    return int(_stat(process)[1])


def started(process: int) -> float:
    """Unix time at which a process began, to 10 ms."""
    boot = next(line for line in (PROC / "stat").read_text().splitlines() if line.startswith("btime"))
    return int(boot.split()[1]) + int(_stat(process)[19]) / os.sysconf("SC_CLK_TCK")


def processor_seconds(process: int) -> float:
    """That a process has used."""
    fields = _stat(process)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _stat(process: int) -> list[str]:
    # Behind the command's name, which may hold anything.
    return (PROC / str(process) / "stat").read_text().rsplit(")", 1)[1].split()


def memory(process: int) -> int:
    """Resident bytes that are a process's own: without files and the pages of Ray's object store."""
    lines = dict(line.split(":", 1) for line in (PROC / str(process) / "status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024


def proportional_memory(process: int) -> int:
    """Resident bytes of a process; pages that several processes share are divided among them (PSS)."""
    lines = dict(line.split(":", 1) for line in (PROC / str(process) / "smaps_rollup").read_text().splitlines()[1:])
    return int(lines["Pss"].split()[0]) * 1024


def descendants(root: int) -> list[int]:
    """All processes that a process started, and those that they did."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(parent(int(entry.name)), []).append(int(entry.name))
    found, queue = [], [root]
    while queue:
        more = children.get(queue.pop(), [])
        found += more
        queue += more
    return found


def ours(word: str) -> list[int]:
    """Processes of this benchmark whose command has a word in it."""
    found = []
    for process in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if word in (PROC / str(process) / "cmdline").read_text():
                found.append(process)
    return sorted(found)


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the straight line with the least squared distance."""
    return statistics.linear_regression(xs, ys).slope


def rounded(value: float, digits: int = 4) -> float:
    """To so many significant digits."""
    return float(f"{value:.{digits}g}")

"""What manifests of many rows take in memory and time, from the usual to the largest that is read.

    python -m benchmarks.fault_manifests              # Linux; into benchmarks/results/fault_manifests.json

Each is read in a process of its own: one whose history has rows as a run writes them, and one of short numbers, which
take the most of all that is not refused unread. The bar is four times the file and 200 MB.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gradinversion.coordinator import CheckpointError, Storage
from gradinversion.coordinator.manifest import read_manifest

from .faults import ALLOWED_BYTES, memory

RESULTS = Path(__file__).parent / "results" / "fault_manifests.json"
_NAME = "manifest.json"
_LOSSES = ("learning_rate", "gradient", "total_variation", "batch_norm", "group", "total", "seconds")
_AT_ONCE = 1000


def rows(chance: random.Random) -> Iterator[str]:
    """Of the history of eight seeds."""
    index = 0
    while True:
        facts = {"seed": index % 8, "round": index // 8, "step": 10 * index, "incarnation": 0}
        yield json.dumps(facts | {name: chance.random() for name in _LOSSES})
        index += 1


def numbers(chance: random.Random) -> Iterator[str]:
    """As short as they may be in a file of this length."""
    while True:
        yield f"{chance.random():.5f}"


KINDS = {"rows of a run": rows, "short numbers": numbers}


def write(path: Path, kind: str, size: int) -> None:
    """A manifest of this kind, of at most so many bytes."""
    parts = KINDS[kind](random.Random(0))
    # The same again and again: each is a value of its own to whoever reads it.
    more = "".join(f",{next(parts)}" for _ in range(_AT_ONCE))
    begin, end = '{"format": 2, "round": 0, "identity": {}, "files": {}, "progress": {"history": [0', "]}}"
    path.write_text(begin + more * ((size - len(begin) - len(end)) // len(more)) + end)


def measure(kind: str, mib: int) -> dict[str, object]:
    """Read one, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _NAME
        write(path, kind, mib * 2**20)
        size, before, began, read = path.stat().st_size, memory(reset=True), time.process_time(), True
        try:
            read_manifest(Storage(folder), _NAME)
        except CheckpointError:
            read = False
        used, seconds = memory(reset=False) - before, time.process_time() - began
        megabytes, most = round(used / 2**20, 1), round((4 * size + ALLOWED_BYTES) / 2**20, 1)
        facts: dict[str, object] = {"manifest": kind, "mib": round(size / 2**20, 1), "read": read}
        return facts | {"megabytes": megabytes, "allowed": most, "processor_seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--mib", type=int, nargs="*", default=[64, 220, 255])
    parser.add_argument("--inside", choices=KINDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        print(json.dumps(measure(given.inside, given.mib[0])))
        return
    found = []
    print("| manifest | MiB | read | MB taken | allowed | processor s |\n|---|---|---|---|---|---|")
    for kind in KINDS:
        for mib in given.mib:
            words = [sys.executable, "-m", "benchmarks.fault_manifests", "--inside", kind, "--mib", str(mib)]
            found.append(json.loads(subprocess.check_output(words)))
            print(f"| {' | '.join(map(str, found[-1].values()))} |", flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

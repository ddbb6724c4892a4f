"""A whole run whose folder's disk gets full: how the command ends, what it says, and what is there when there is room.

    unshare -m python -m benchmarks.fault_disk_run                  # as root, on Linux: each disk is one in memory
    unshare -m python -m benchmarks.fault_disk_run --shares 0.5     # of the room that a run takes

After the command has ended the disk is made large, and the same command goes on with ``resume=true``: its images must
be those of a run with room. Where it said that the reconstruction is in another place, that one must hold them too.
Rows in ``benchmarks/results/fault_disk_run.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from gradinversion.coordinator import Storage, read_result

from .fault_disk import disk, resize, same, taken

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "fault_disk_run.json"
_WORDS = ("agents.count=2", "agents.iterations=300", "coordinator.period=50", "coordinator.start=0.5")
_IMAGES = "reconstruction.safetensors"
_LONGEST_SECONDS = 400.0
_KEPT = re.compile(r"The finished reconstruction is in (\S+),")
_COMMAND = str(ROOT / "run.py")
_MB = 2**10


@dataclass
class Row:
    """What became of one run."""

    share: float
    """The disk's size over what an undisturbed run takes."""
    status: int
    said: str
    """The last lines of the command."""
    seconds: float
    kept: bool | None
    """Whether the images are where the command said that they are; None where it said nothing of that."""
    resumed: int
    """The exit status of the command that went on."""
    equal: bool
    """Whether its images are those of the undisturbed run, byte for byte."""


def run(out: Path, *words: str) -> tuple[int, str]:
    """The real command, its exit status, and what it printed."""
    try:
        ended = subprocess.run(
            [sys.executable, _COMMAND, f"out={out}", *_WORDS, *words],
            env=os.environ | {"RAY_ADDRESS": "local", "NO_COLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_LONGEST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return -1, "did not end"
    return ended.returncode, ended.stdout


def run_on_full_disk(share: float, kilobytes: int, undisturbed: Path) -> Row:
    """One run on a disk of this size, and the one that goes on.

    Args:
        share: For the row.
        kilobytes: The disk's size.
        undisturbed: The folder of a run with room.
    """
    with disk(kilobytes) as place:
        out, began = place / "out", time.monotonic()
        status, printed = run(out)
        seconds = round(time.monotonic() - began, 1)
        kept: bool | None = None
        places = {_COMMAND: "run.py", str(place): "FOLDER"}
        if found := _KEPT.search(printed):
            places = {found[1]: "KEPT"} | places
            result = read_result(Storage(undisturbed))
            assert result is not None
            kept = same(read_result(Storage(found[1])), result)
            if found[1] != str(out):
                shutil.rmtree(found[1])
        resize(place, f"{64 * _MB}k")
        resumed, later = run(out, "resume=true")
        images = out / _IMAGES
        equal = images.exists() and images.read_bytes() == (undisturbed / _IMAGES).read_bytes()
        said = [line for line in (printed if equal else printed + later).splitlines() if line.strip()]
        return Row(share, status, without_places("\n".join(said[-6:]), places), seconds, kept, resumed, equal)


def without_places(said: str, places: Mapping[str, str]) -> str:
    """What a command said, with words in place of this machine's paths, one after the other.

    Args:
        said: Its lines.
        places: The word for each path.
    """
    for path, word in places.items():
        said = said.replace(path, word)
    return said


def table(rows: list[Row]) -> str:
    """For BENCHMARKS.md."""
    lines = ["| room, of what a run takes | exit status | s | images where it says | resumed | equal bytes |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        kept = "–" if row.kept is None else "yes" if row.kept else "**no**"
        equal = "yes" if row.equal else "**no**"
        lines.append(f"| {row.share:g} | {row.status} | {row.seconds:g} | {kept} | {row.resumed} | {equal} |")
    return "\n".join(lines)


def keep(row: Row) -> list[Row]:
    """Write down a row in its place; all that are written down."""
    known = {one["share"]: Row(**one) for one in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    known[row.share] = row
    rows = [known[share] for share in sorted(known)]
    RESULTS.write_text(json.dumps([asdict(one) for one in rows], indent=1) + "\n")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.02, 0.2, 0.5, 0.8, 0.95])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = Path(folder) / "whole"
        status, printed = run(undisturbed)
        if status != 0:
            raise SystemExit(printed)
        room = taken(undisturbed)
        print(f"A run takes {room} kB.", flush=True)
        for share in given.shares:
            row = run_on_full_disk(share, max(8, int(share * room)), undisturbed)
            rows = keep(row)
            print(table([row]).splitlines()[-1], row.said, sep="\n", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()

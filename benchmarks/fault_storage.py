"""The real command with its folder in a bucket whose server is slow, fails, loses answers and breaks connections off.

    python -m benchmarks.fault_storage               # into benchmarks/results/fault_storage.json; needs moto and s3fs
    python -m benchmarks.fault_storage --only slow refused           # rows whose name holds a word; the others are kept

In each row the images at the end are held against those of an undisturbed run in a folder. In the last the server is
gone from the second round on; the command must end with one sentence, and go on with ``resume=true`` once it is back.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from gradinversion.storage.folders import Storage, StorageError

from .faulty_s3 import FaultyS3, Weather

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "fault_storage.json"
_WORDS = ("agents.count=2", "agents.iterations=300", "coordinator.period=50", "coordinator.start=0.5")
_BUCKET = "faults"
_COMMAND = str(ROOT / "run.py")
_KEPT = re.compile(r"/\S*gradinversion-kept-\w+")
_IMAGES = "reconstruction.safetensors"
_LARGEST_BYTES = 2**26
_LONGEST_SECONDS = 400.0
WEATHERS = {
    "slow: up to 2 s": Weather(seconds=2.0),
    "30 % refused": Weather(refuses=0.3),
    "30 % of answers lost": Weather(forgets=0.3),
    "30 % of answers cut": Weather(cuts_answers=0.3),
    "30 % of bodies cut": Weather(cuts_bodies=0.3),
    "all of it": Weather(0.5, 0.1, 0.1, 0.1, 0.1),
}
GONE = "gone after a round, then back"


@dataclass
class Row:
    """What became of one run."""

    storage: str
    status: int = -1
    equal: bool = False
    faults: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    said: str = ""
    """What the command printed last, where it did not end well."""
    before: int | None = None
    """The exit status while the server was gone; None where it was there."""


def begin(out: str, environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    """The command, with its output read later."""
    return subprocess.Popen(
        [sys.executable, _COMMAND, f"out={out}", *_WORDS, *words],
        env=os.environ | environment | {"RAY_ADDRESS": "local", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(command: subprocess.Popen[str]) -> tuple[int, str]:
    """The status of a command, and its last words."""
    try:
        printed, _ = command.communicate(timeout=_LONGEST_SECONDS)
    except subprocess.TimeoutExpired:
        command.kill()
        return -1, "did not end"
    return command.returncode, without_places(printed)[-400:]


def without_places(said: str) -> str:
    """What a command said, with words in place of this machine's paths."""
    return _KEPT.sub("KEPT", said.replace(_COMMAND, "run.py"))


def images_in(out: str) -> bytes:
    try:
        return Storage(out).read(_IMAGES, _LARGEST_BYTES)
    except StorageError:
        return b""


def run_in(weather: Weather, name: str, server: FaultyS3, environment: dict[str, str], whole: bytes) -> Row:
    """One run under one weather."""
    out, began = f"s3://{_BUCKET}/{''.join(filter(str.isalnum, name))}", time.monotonic()
    server.weather = weather
    status, said = end(begin(out, environment))
    server.weather = Weather()
    row = Row(name, status, images_in(out) == whole, dict(weather.met), round(time.monotonic() - began, 1))
    return row if row.equal else replace(row, said=said)


def run_without(server: FaultyS3, environment: dict[str, str], whole: bytes) -> Row:
    """A run whose server goes for good, and is there again for the command that goes on."""
    out, began = f"s3://{_BUCKET}/gone", time.monotonic()
    storage, gone = Storage(out), Weather(refuses=1.0)
    command = begin(out, environment)
    while command.poll() is None and not storage.names("checkpoints/round-000000"):
        time.sleep(0.2)
    server.weather = gone
    status, said = end(command)
    server.weather = Weather()
    sentence = " ".join(said.split())
    if status not in (2, 3) or "Traceback" in said:
        return Row(GONE, said=sentence, before=status)
    later, said = end(begin(out, environment, "resume=true"))
    equal, seconds = images_in(out) == whole, round(time.monotonic() - began, 1)
    return Row(GONE, later, equal, dict(gone.met), seconds, sentence if equal else said, status)


def table(rows: list[Row]) -> str:
    """For BENCHMARKS.md."""
    lines = ["| storage | faults met | exit status | equal bytes | seconds |", "|---|---|---|---|---|"]
    for row in rows:
        status = row.status if row.before is None else f"{row.before}, then {row.status}"
        lines.append(
            f"| {row.storage} | {sum(row.faults.values())} | {status} | {'yes' if row.equal else 'no'} "
            f"| {row.seconds:g} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--only", nargs="*", default=[""], help="rows whose name holds one of these")
    given = parser.parse_args()
    server = FaultyS3(Weather())
    names = [name for name in (*WEATHERS, GONE) if any(word in name for word in given.only)]
    with tempfile.TemporaryDirectory() as folder, server.running() as environment:
        status, said = end(begin(folder + "/whole", {}))
        if status != 0:
            raise SystemExit(said)
        whole = (Path(folder) / "whole" / _IMAGES).read_bytes()
        os.environ |= environment
        _make_bucket()
        for name in names:
            if name == GONE:
                row = run_without(server, environment, whole)
            else:
                row = run_in(WEATHERS[name], name, server, environment, whole)
            rows = keep(row)
            print(table([row]).splitlines()[-1], row.said, flush=True)
    print(table(rows))


def keep(row: Row) -> list[Row]:
    """Write down a row in its place; all that are written down, in the order in which they are run."""
    known = {one["storage"]: Row(**one) for one in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    known[row.storage] = row
    rows = [known[name] for name in (*WEATHERS, GONE) if name in known]
    RESULTS.write_text(json.dumps([asdict(one) for one in rows], indent=1) + "\n")
    return rows


def _make_bucket() -> None:
    import boto3

    boto3.client("s3").create_bucket(Bucket=_BUCKET)


if __name__ == "__main__":
    main()

"""What becomes of files that were changed at random: read, refused with a sentence, or what nobody documented.

    python -m benchmarks.faults --count 1000          # all kinds, into benchmarks/results/faults.json
    python -m benchmarks.faults --kind images --count 200      # one; the others are kept

Each kind runs in a process of its own, which is ended where one file takes it longer than a minute.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

from gradinversion.refusal import Refusal

from .mutants import DOORS

RESULTS = Path(__file__).parent / "results" / "faults.json"
SLOW_SECONDS = 5.0
_ENDED_AFTER_SECONDS = 60
ALLOWED_BYTES = 200 * 2**20
_SHOWN = 3


class _SlowError(BaseException):
    """Nothing that a reader could catch by mistake."""


@dataclass
class Found:
    """What became of the mutants of one kind."""

    kind: str
    mutants: int = 0
    read: int = 0
    refused: int = 0
    undocumented: int = 0
    slow: int = 0
    """Over five seconds."""
    large: int = 0
    """Took more memory than four times the file and 200 MB."""
    most_megabytes: float = 0.0
    """Memory beyond that before the file was read."""
    longest_seconds: float = 0.0
    examples: list[str] = field(default_factory=list)
    """Of what nobody documented."""


def run_kind(kind: str, count: int, seed: int, folder: Path) -> Found:
    """Read as many mutants of one kind in this process.

    Args:
        kind: One of `DOORS`.
        count: Mutants.
        seed: Of the mutations.
        folder: Empty.
    """
    door, chance, found = DOORS[kind](folder), random.Random(seed), Found(kind)
    outcomes: collections.Counter[str] = collections.Counter()
    for _ in range(count):
        path, size = door.mutate(chance)
        before, began = memory(reset=True), time.perf_counter()
        outcome = _outcome(door.read, path)
        seconds, used = time.perf_counter() - began, memory(reset=False) - before
        outcomes[outcome] += 1
        found.mutants += 1
        found.read += outcome == "read"
        found.refused += outcome == "refused"
        found.slow += outcome == "slow" or seconds > SLOW_SECONDS
        found.large += used > 4 * size + ALLOWED_BYTES
        found.most_megabytes = max(found.most_megabytes, round(used / 2**20, 1))
        found.longest_seconds = max(found.longest_seconds, round(seconds, 2))
        door.restore(path)
    strange = {outcome: number for outcome, number in outcomes.items() if outcome not in ("read", "refused", "slow")}
    found.undocumented = sum(strange.values())
    found.examples = sorted(strange)[:_SHOWN]
    return found


def _outcome(read: object, path: Path) -> str:
    def ring(_: int, __: FrameType | None) -> None:
        raise _SlowError

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(2 * int(SLOW_SECONDS))
    try:
        assert callable(read)
        read(path)
        return "read"
    except Refusal as error:
        return "refused" if str(error).isprintable() or "\n" in str(error) else f"unsafe text: {str(error)!r}"
    except _SlowError:
        return "slow"
    # Whatever else comes out is what is looked for.
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]} ({path.name})"
    finally:
        signal.alarm(0)


def memory(reset: bool) -> int:
    """Most bytes that this process held since the last reset, on Linux; 0 elsewhere."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def _run_apart(kind: str, count: int, seed: int) -> Found:
    """As ``run_kind``, in a process that may die."""
    words = [sys.executable, "-m", "benchmarks.faults", "--inside", "--kind", kind]
    words += ["--count", str(count), "--seed", str(seed)]
    limit = 60 + count * SLOW_SECONDS if count < 100 else _ENDED_AFTER_SECONDS + count
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return Found(kind, slow=1, examples=["did not end"])
    if done.returncode:
        return Found(kind, undocumented=1, examples=[f"exit {done.returncode}: {done.stderr[-300:]}"])
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def table(rows: list[Found]) -> str:
    """For BENCHMARKS.md."""
    lines = [
        "| mutants of | files | read | refused | undocumented | over 5 s | over the memory | most MB | longest s |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        numbers = (row.mutants, row.read, row.refused, row.undocumented, row.slow, row.large)
        shown = " | ".join(f"{number:,}" for number in numbers)
        lines.append(f"| {row.kind} | {shown} | {row.most_megabytes:g} | {row.longest_seconds:g} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--kind", choices=[*DOORS, "all"], default="all")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inside", action="store_true", help="in this process, as JSON")
    given = parser.parse_args()
    if given.inside:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(asdict(run_kind(given.kind, given.count, given.seed, Path(folder)))))
        return
    rows = []
    for kind in DOORS if given.kind == "all" else [given.kind]:
        row = _run_apart(kind, given.count, given.seed)
        rows = _keep(row)
        print(*(f"{kind}: {example}" for example in row.examples), sep="\n", flush=True)
    print(table(rows))


def _keep(row: Found) -> list[Found]:
    """Write down what became of one kind; all kinds that are written down."""
    known = {one["kind"]: Found(**one) for one in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    known[row.kind] = row
    rows = [known[kind] for kind in DOORS if kind in known]
    RESULTS.write_text(json.dumps([asdict(one) for one in rows], indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()

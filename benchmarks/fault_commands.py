"""The entry point of the command on files made by hand: which status, which sentence, how long, how much memory.

    python -m benchmarks.fault_commands               # into benchmarks/results/fault_commands.json; Linux

Each command runs in a process of its own, forked from one that has loaded the package, and is ended after a minute. It
must be refused: status 2, one sentence without escape sequences and secrets, within five seconds and four times its
files' size and 200 MB, with nothing in its folders changed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from gradinversion.run import main as entry_point

from .fault_cases import SECRET, Case, cases
from .faults import ALLOWED_BYTES, SLOW_SECONDS, memory

RESULTS = Path(__file__).parent / "results" / "fault_commands.json"
_ENDED_AFTER_SECONDS = 60
_LONGEST_TEXT = 12_000
_REFUSED = 2
_SHOWN = 240


@dataclass(frozen=True)
class Found:
    """What a command did."""

    door: str
    what: str
    command: str
    file_bytes: int
    status: int
    said: str
    seconds: float
    megabytes: float
    """Above what the process held before."""
    problems: list[str]


def run_case(case: Case, folder: Path) -> Found:
    """One command in a process of its own.

    Args:
        case: Of `cases`.
        folder: Empty.
    """
    given, printed, numbers = folder / "given", folder / "printed", folder / "numbers"
    given.mkdir()
    case.make(given)
    words = [word.replace("{}", str(given)) for word in case.words]
    before, size = _state(given), sum(path.stat().st_size for path in given.rglob("*") if path.is_file())
    process = os.fork()
    if process == 0:
        _inside(words, case, folder)
    _, ended = os.waitpid(process, 0)
    status = os.waitstatus_to_exitcode(ended)
    seconds, used = json.loads(numbers.read_text()) if numbers.exists() else (0.0, 0)
    said = printed.read_text(errors="replace")
    checks = {
        f"status {status}": status != _REFUSED,
        "a traceback": "Traceback" in said,
        "control characters": not said.replace("\n", "").isprintable(),
        "a secret": SECRET in said,
        f"{len(said):,} characters": not 0 < len(said) <= _LONGEST_TEXT,
        f"{seconds:.0f} seconds": seconds > SLOW_SECONDS,
        f"{used / 2**20:,.0f} MB": used > 4 * size + ALLOWED_BYTES,
        "a changed folder": _state(given) != before or (folder / "new").exists(),
    }
    # The folder that the command works in is the one above.
    sentence = " ".join(said.replace(str(given), "FOLDER").replace(str(folder), "HERE").split())[:_SHOWN]
    command = " ".join(word.replace("{}", "FOLDER") for word in case.words)
    megabytes = round(used / 2**20, 1)
    problems = [problem for problem, found in checks.items() if found]
    return Found(case.door, case.what, command, size, status, sentence, round(seconds, 1), megabytes, problems)


def _inside(words: list[str], case: Case, folder: Path) -> None:
    """The forked process, which ends here."""
    status = 1
    try:
        signal.alarm(_ENDED_AFTER_SECONDS)
        output = os.open(folder / "printed", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        os.environ |= {"RAY_ADDRESS": "local", "NO_COLOR": "1", **dict(case.environment)}
        before, began = memory(reset=True), time.monotonic()
        status = entry_point(words)
        sys.stdout.flush()
        sys.stderr.flush()
        (folder / "numbers").write_text(json.dumps([time.monotonic() - began, memory(reset=False) - before]))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of every file."""
    found = {str(path.relative_to(folder)): path.lstat() for path in sorted(folder.rglob("*"))}
    return {name: (one.st_size, one.st_mtime_ns) for name, one in found.items()}


def table(rows: list[Found]) -> str:
    """For BENCHMARKS.md: the doors."""
    lines = ["| door | commands | refused as they must be | longest s | most MB | largest file, MB |"]
    lines.append("|---|---|---|---|---|---|")
    for door in dict.fromkeys(row.door for row in rows):
        of_door = [row for row in rows if row.door == door]
        longest, most = max(row.seconds for row in of_door), max(row.megabytes for row in of_door)
        good, largest = sum(not row.problems for row in of_door), max(row.file_bytes for row in of_door) / 2**20
        lines.append(f"| {door} | {len(of_door)} | {good} | {longest:g} | {most:g} | {largest:,.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--only", default="", help="cases whose door or name holds this")
    given = parser.parse_args()
    chosen = [case for case in cases() if given.only in f"{case.door}: {case.what}"]
    # What every command loads, once.
    entry_point(["report", "out=/does/not/exist"])
    rows = []
    for case in chosen:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(run_case(case, Path(folder)))
        found = rows[-1]
        print(f"{found.door}: {found.what}: {found.seconds} s, {found.megabytes} MB, {', '.join(found.problems)}")
        print(f"    {found.command}\n    {found.status}: {found.said}", flush=True)
    print(table(rows))
    if not given.only:
        RESULTS.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()

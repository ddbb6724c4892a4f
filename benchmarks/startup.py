"""What it costs until a run does its work: `python -m benchmarks.startup` prints seconds and memory of the default run.

    python -m benchmarks.startup                    # four agents, the bundled network and photos
    python -m benchmarks.startup --runs 3 --save before -- agents.count=1
    python -m benchmarks.startup --runs 3 --turns -- agents.iterations=60    # with and without forking, in turns

The command itself is run, in a process whose only addition is that it notes when it sees what. Times are those of the
clock, from the start of the command; beside them the seconds of processor that it and all that it started had used
until then, which other work on the machine changes little. Memory is proportional: a page that several processes share
is counted once. With GRADINVERSION_FORK_SERVER=off each process of a run loads everything itself.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from .cluster_machine import descendants, machine, processor_seconds, proportional_memory, rounded

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "startup.json"
_SAMPLE_SECONDS = 0.25
_BESIDE = ("command", "coordinator")
_ended: list[bool] = []
# Run in the command's own process: it notes when it has loaded the package, sees the run begin, its first step and the
# choice of images, and when it has the images and judges them for the page.
_COMMAND = """
import sys, time
def note(name):
    if name not in seen:
        seen.add(name)
        with open(sys.argv[1], "a") as file:
            file.write(f"{name} {time.time()}\\n")
seen = set()
from contextlib import contextmanager
from gradinversion.command import entry
fork_server = entry.fork_server
@contextmanager
def then_watched():
    with fork_server():
        import gradinversion.cluster, gradinversion.command.verbs, gradinversion.settings.run
        from gradinversion.audit import pipeline
        note("loaded")
        view = gradinversion.cluster.ProgressView
        show = view.__call__
        def watched(self, status):
            note("coordinator")
            if status.phase.name not in ("STARTING", "PREPARING"):
                note("prepared")
            if any(seed.step for seed in status.seeds):
                note("first step")
            if status.phase.name == "CHOOSING":
                note("choosing")
            show(self, status)
        view.__call__ = watched
        judge = pipeline.judge
        def judged(*given, **named):
            note("judging")
            return judge(*given, **named)
        pipeline.judge = judged
        yield
entry.fork_server = then_watched
sys.argv[0] = "gradinversion"
status = entry.run(sys.argv[2:])
note("end")
sys.exit(status)
"""


def measure(words: list[str], forking: bool = True) -> dict[str, Any]:
    """One run of the command: seconds until each moment, and the most memory that it had, by kind of process.

    `beside_agents_mib` is the most that command and coordinator held together, which may be at another moment; behind
    each of the moments, the most until the next one.
    """
    environment = os.environ | ({} if forking else {"GRADINVERSION_FORK_SERVER": "off"})
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        notes.touch()
        began = time.time()
        command = [sys.executable, "-c", _COMMAND, str(notes), f"out={folder}/run", *words]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        most: dict[str, float] = {}
        beside: dict[str, float] = {"most": 0.0}
        split: dict[str, dict[str, float]] = {}
        used: dict[str, float] = {}
        seconds: dict[int, float] = {}
        while process.poll() is None and not _ended:
            now = memory_by_kind(process.pid, seconds)
            if sum(now.values()) > sum(most.values()):
                most = now
            moments = _moments(notes)
            for name in ("most", f"behind {list(moments)[-1]}" if moments else "begun"):
                parts = {kind: now.get(kind, 0.0) for kind in _BESIDE}
                if sum(parts.values()) > beside.get(name, 0.0):
                    beside[name], split[name] = sum(parts.values()), parts
            for name in moments:
                used.setdefault(name, sum(seconds.values()))
            time.sleep(_SAMPLE_SECONDS)
        if _ended:
            print("Ended before the run did; until then it was seen that")
            process.terminate()
            process.wait()
        elif process.returncode:
            raise SystemExit(f"the command ended with status {process.returncode}")
        moments = {name: at - began for name, at in _moments(notes).items()}
    found = {"seconds": moments, "processor_seconds": used, "memory_mib": most, "beside_agents_mib": beside}
    return found | {f"of_them_{kind}_mib": {name: one[kind] for name, one in split.items()} for kind in _BESIDE}


def memory_by_kind(root: int, seconds: dict[int, float]) -> dict[str, float]:
    """MiB of a process and of all that it started, by what they are; the seconds that each used are put down too."""
    found: dict[str, float] = defaultdict(float)
    for number in [root, *descendants(root)]:
        try:
            kind = _kind((Path("/proc") / str(number) / "cmdline").read_bytes(), number == root)
            found[kind] += proportional_memory(number) / 2**20
            seconds[number] = processor_seconds(number)
        except OSError:
            continue  # it has just ended
    return dict(found)


def _kind(line: bytes, is_root: bool) -> str:
    kinds = {b"Agent": "agents", b"Coordinator": "coordinator", b"ray::": "idle workers"}
    return "command" if is_root else next((kind for mark, kind in kinds.items() if mark in line), "Ray itself")


def _moments(notes: Path) -> dict[str, float]:
    rows = [line.rpartition(" ") for line in notes.read_text().splitlines()]
    return {name: float(at) for name, _, at in rows}


def middle(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The median of every figure over runs that have it; a kind of process that one lacks held no memory there."""
    keys = {part: dict.fromkeys(name for run in runs for name in run[part]) for part in runs[0]}
    return {part: {name: rounded(median(_figures(runs, part, name))) for name in names} for part, names in keys.items()}


def _figures(runs: list[dict[str, Any]], part: str, name: str) -> list[float]:
    # A moment that no sample fell on was not looked at, which is no figure of zero.
    return [run[part].get(name, 0.0) for run in runs if name in run[part] or part == "memory_mib"]


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """The figures of one run, or of the medians of some, for people."""
    lines = [
        f"{name:12} {at:7.1f} s, {found['processor_seconds'].get(name, float('nan')):7.1f} s of processor"
        for name, at in found["seconds"].items()
    ]
    memory = ", ".join(f"{kind} {size:.0f}" for kind, size in found["memory_mib"].items())
    parts = ", ".join(f"{size:.0f} {name}" for name, size in found["beside_agents_mib"].items())
    beside = f"command and coordinator together, MiB: {parts}"
    return "\n".join([*lines, f"memory {sum(found['memory_mib'].values()):.0f} MiB ({memory}); {beside}"])


def _end(*_: object) -> None:
    """Whoever ends the benchmark has what it saw until then."""
    _ended.append(True)


def main() -> None:
    """Measure some runs, and print the medians with those that were saved under their name before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--save", metavar="NAME", help="add them to the runs of that name in results/startup.json")
    parser.add_argument("--turns", action="store_true", help="each run without forking too, one after the other")
    parser.add_argument("words", nargs="*", help="settings of the run")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    kinds = {"": True, " without forking": False} if options.turns else {"": True}
    earlier = {kind: kept(options.save + kind, options.words) if options.save else [] for kind in kinds}
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for _ in range(options.runs):
        for kind, forking in kinds.items():
            runs[kind].append(measure(options.words, forking))
            if _ended:
                print(table(middle(runs[kind][-1:])))
                raise SystemExit(1)
    for kind, measured in runs.items():
        each = [*earlier[kind], *measured]
        print(f"{len(each)} runs{kind}", table(middle(each)), sep="\n")
        if options.save:
            about = {"words": options.words, "machine": machine(), "runs": len(each), "each": each}
            saved = _results() | {options.save + kind: about | middle(each)}
            RESULTS.write_text(json.dumps(saved, indent=1) + "\n")


def _results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def kept(name: str, words: list[str]) -> list[dict[str, Any]]:
    """The runs that were saved under a name; those of other settings have no median in common.

    Raises:
        SystemExit: They had other settings.
    """
    saved = _results().get(name, {"words": words})
    if saved["words"] != words:
        raise SystemExit(
            f"{name} has runs of other settings ({' '.join(saved['words'])}): give another name to --save."
        )
    found: list[dict[str, Any]] = saved.get("each", [])
    return found


if __name__ == "__main__":
    main()

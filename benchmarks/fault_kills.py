"""Processes of local runs killed at random; the images at the end are those of a run that nothing happened to.

    python -m benchmarks.fault_kills --kills 50       # into benchmarks/results/fault_kills.json
    python -m benchmarks.fault_kills --kills 5 --seed 7

What an earlier call with another seed found is kept, and counted in the table. Each run is the real command in a folder
of its own; what it listens on is looked at before each kill.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import cluster_ports

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "fault_kills.json"
KINDS = ("an agent", "the coordinator", "both", "the command", "everything")
_WORDS = ("agents.count=2", "agents.iterations=600", "coordinator.period=50", "coordinator.start=0.5")
AGENT, COORDINATOR = "ray::AgentProcess", "ray::CoordinatorProcess"
# Of one run, so that no coordinator is killed more often than it is made again.
_KILLS_PER_RUN = 4
LONGEST_SECONDS = 300.0
LOOK_SECONDS = 0.05


@dataclass
class Found:
    """What became of the runs."""

    runs: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    equal: int = 0
    """Runs whose images are those of the undisturbed run, byte for byte."""
    problems: list[str] = field(default_factory=list)
    left: int = 0
    """Processes that were still there a minute after their command had ended."""
    open_ports: int | None = 0
    """Ports of a local run that other machines reach; None of a cluster, which is meant to be reached."""
    seconds: float = 0.0
    place: str = "local"
    """Or ``cluster``."""


def saved_round(out: Path) -> int:
    """The newest whole round of a folder; -1 before there is one."""
    names = (path.parent.name.removeprefix("round-") for path in (out / "checkpoints").glob("round-*/manifest.json"))
    return max((int(name) for name in names if name.isdecimal()), default=-1)  # others are parts of a round


class Command:
    """The real command in a folder; begun again with ``resume=true`` where a kill ended it.

    Args:
        folder: Empty.
        settings: Of the run, but for its ``out``.
        address: Of Ray.
        apart: Whether its processes are a session of their own.
    """

    def __init__(self, folder: Path, settings: Sequence[str], address: str, apart: bool) -> None:
        self.out, self._folder = folder / "out", folder
        self._settings, self._address, self._apart = settings, address, apart
        self.begin()

    def begin(self, *words: str) -> None:
        command = [sys.executable, str(ROOT / "run.py"), f"out={self.out}", *self._settings, *words]
        with open(self._folder / "printed", "a") as printed:
            self._command = subprocess.Popen(
                command,
                env=os.environ | {"RAY_ADDRESS": self._address, "NO_COLOR": "1"},
                stdout=printed,
                stderr=printed,
                start_new_session=self._apart,
            )

    @property
    def ended(self) -> bool:
        return self._command.poll() is not None

    def wait_for_a_round(self, after: int) -> None:
        until = time.monotonic() + LONGEST_SECONDS
        while saved_round(self.out) <= after and not self.ended and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)

    @property
    def images(self) -> bytes:
        return (self.out / "reconstruction.safetensors").read_bytes()

    @property
    def last_words(self) -> str:
        return (self._folder / "printed").read_text()[-300:]

    def judge(self, status: int, whole: bytes, found: Found) -> None:
        """Add what came of the run, by its exit status and the images of an undisturbed one."""
        found.runs += 1
        if status == 0 and self.images == whole:
            found.equal += 1
        else:
            found.problems.append(f"run {found.runs}: status {status}: {self.last_words}")


class Run(Command):
    """One whose processes are all on this machine."""

    def __init__(self, folder: Path, found: Found) -> None:
        self._found = found
        super().__init__(folder, _WORDS, "local", apart=True)

    def kill(self, kind: str, chance: random.Random) -> bool:
        """Kill what is named; False where it is not there now."""
        processes = cluster_ports.session(self._command.pid)
        listening = cluster_ports.listeners([one.number for one in processes])
        assert self._found.open_ports is not None
        self._found.open_ports += sum(not one.is_loopback for one in listening)
        agents = [one.number for one in processes if one.command.startswith(AGENT)]
        coordinators = [one.number for one in processes if one.command.startswith(COORDINATOR)]
        chosen = {
            "an agent": [chance.choice(agents)] if agents else [],
            "the coordinator": coordinators,
            "both": [*agents[:1], *coordinators] if agents and coordinators else [],
            "the command": [self._command.pid],
            "everything": [one.number for one in processes],
        }[kind]
        for number in chosen:
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if kind in ("the command", "everything"):
            self._command.wait()
            self.require_nothing_left()
            self.begin("resume=true")
        return bool(chosen)

    def finish(self) -> int:
        try:
            status = self._command.wait(LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            for one in cluster_ports.session(self._command.pid):
                os.kill(one.number, signal.SIGKILL)
            status = self._command.wait()
        self.require_nothing_left()
        return status

    def require_nothing_left(self) -> None:
        until = time.monotonic() + 60
        while (left := cluster_ports.session(self._command.pid)) and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
        self._found.left += len(left)
        self._found.problems += [f"still running: {one.command[:100]}" for one in left]


def run_with_kills(folder: Path, whole: bytes, kills: int, chance: random.Random, found: Found) -> None:
    """One run, so many kills, and what came of it.

    Args:
        folder: Empty.
        whole: The images of an undisturbed run.
        kills: Fewer where the run ends before.
        chance: Of kinds and moments.
        found: What is known so far.
    """
    run = Run(folder, found)
    for _ in range(kills):
        run.wait_for_a_round(saved_round(run.out))
        time.sleep(chance.uniform(0, 0.5))
        if run.ended:
            break
        kind = chance.choice(KINDS)
        if run.kill(kind, chance):
            found.kills[kind] = found.kills.get(kind, 0) + 1
    run.judge(run.finish(), whole, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600.0, help="no run is begun later than this")
    given = parser.parse_args()
    found, chance, began = Found(), random.Random(given.seed), time.monotonic()
    parts: list[Found] = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "whole").mkdir()
        undisturbed = Run(Path(folder) / "whole", found)
        if undisturbed.finish() != 0:
            raise SystemExit(undisturbed.last_words)
        while (left := given.kills - sum(found.kills.values())) > 0 and time.monotonic() - began < given.seconds:
            place = Path(folder) / f"run-{found.runs}"
            place.mkdir()
            run_with_kills(place, undisturbed.images, min(left, _KILLS_PER_RUN), chance, found)
            print(f"{sum(found.kills.values())} kills, {found.equal} of {found.runs} runs equal", flush=True)
            found.seconds = round(time.monotonic() - began, 1)
            parts = keep(str(given.seed), found)
    print(*found.problems, sep="\n")
    print(table(parts))


def keep(name: str, found: Found) -> list[Found]:
    """Write down what one seed found so far; all that is written down."""
    parts = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    parts[name] = asdict(found)
    RESULTS.write_text(json.dumps(parts, indent=1) + "\n")
    return [Found(**part) for part in parts.values()]


def table(parts: list[Found]) -> str:
    """For BENCHMARKS.md: all seeds of a place together."""
    lines = ["| place | kills | of | runs | equal bytes | left running | ports beyond loopback |"]
    lines.append("|---|---|---|---|---|---|---|")
    for place in dict.fromkeys(part.place for part in parts):
        of_place = [part for part in parts if part.place == place]
        kinds: collections.Counter[str] = collections.Counter()
        for part in of_place:
            kinds.update(part.kills)
        counts = [sum(getattr(part, name) for part in of_place) for name in ("runs", "equal", "left")]
        ports = [part.open_ports for part in of_place if part.open_ports is not None]
        cells = [place, kinds.total(), ", ".join(f"{kind} {number}" for kind, number in kinds.items()), *counts]
        lines.append(f"| {' | '.join(map(str, cells))} | {sum(ports) if ports else '–'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

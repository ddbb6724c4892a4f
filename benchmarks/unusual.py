"""What the command says of networks and updates that peeling cannot take as they are, and whether the attack goes on.

    python -m benchmarks.unusual                       # every case; json in benchmarks/results/, table printed
    python -m benchmarks.unusual --only tied twice

Each case is the real command (``run.py``) on two images of 8 px and a network of `unusual_models`: one agent, six
steps, 1e10 operations of peeling. Kept is what it printed, with the verdict and what stands of peeling in
``report.json``. Under a niceness of its own the command wants ``RAY_worker_niceness=0``, since Ray adds 15 to it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "unusual.json"
_MODELS = "gradinversion.benchmarks.unusual_models"
_CLIENT = ("client.classes=10", "client.image_size=8")
_ATTACK = (
    "agents.count=1",
    "agents.iterations=6",
    "coordinator.period=6",
    "audit.controls=constant_image",
    "peeling.operations=1e10",
)
_LIMIT_SECONDS = 900


@dataclass(frozen=True)
class Case:
    """One command."""

    name: str
    model: str
    words: tuple[str, ...] = ("client.batch_size=2",)
    captured: tuple[str, ...] | None = None
    """What the client is where its update is saved first and attacked as a file; `words` are of the attack then."""


CASES = (
    Case("nothing unusual", "plain"),
    Case("decides by the content of its images", "branching"),
    Case("a block that runs twice", "twice"),
    Case("two convolutions with one weight", "tied"),
    Case("one convolution and batch norm under two names", "shared"),
    Case("two convolutions with one weight, at the foothold", "tied_last"),
    Case("reflect padding", "reflecting"),
    Case("frozen second stage", "frozen_middle"),
    Case("frozen last stage", "frozen_last"),
    Case("three images, two told", "plain", ("told.image_count=2",), ("client.batch_size=3",)),
)


def run_case(case: Case, folder: Path) -> dict[str, Any]:
    """What the command printed and wrote.

    Args:
        case: Which.
        folder: Empty.
    """
    model, words = f"client.model={_MODELS}:{case.model}", case.words
    if case.captured is not None:
        _command(["capture", "out=sent", model, *_CLIENT, *case.captured], folder)
        words = ("update=sent/update.safetensors", *words)
    began = time.monotonic()
    status, said = _command([model, *_CLIENT, *words, *_ATTACK, "out=out"], folder)
    line: dict[str, Any] = {"case": case.name, "model": case.model, "words": list(words), "status": status}
    line |= {"seconds": round(time.monotonic() - began, 1), "said": said.replace(str(folder), "HERE").splitlines()}
    report = folder / "out" / "report.json"
    if report.exists():
        found = json.loads(report.read_text())
        line |= {name: found.get(name) for name in ("verdict", "psnr_mean", "constant_image_psnr", "gradient_loss")}
        line["peeling"] = (found.get("peeling") or {}).get("summary")
    return line


def _command(words: Sequence[str], folder: Path) -> tuple[int, str]:
    """Its exit status and all that it printed."""
    environment = os.environ | {"RAY_ADDRESS": "local", "NO_COLOR": "1"}
    command = [sys.executable, str(ROOT / "run.py"), *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=_LIMIT_SECONDS
    )
    return done.returncode, done.stdout + done.stderr


def show(lines: Sequence[dict[str, Any]]) -> None:
    """A line for each case."""
    print("| what is unusual | exit status | summary | images, dB | constant, dB |")
    print("|---|---|---|---|---|")
    for line in lines:
        cells = [line["case"], line["status"], line.get("peeling")]
        cells += [line.get("psnr_mean"), line.get("constant_image_psnr")]
        print("| " + " | ".join(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |")


def main() -> None:
    """Run the cases that are asked for; others keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="words of the cases' names or models")
    options = parser.parse_args()
    lines: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for case in CASES:
        if options.only and not any(word in f"{case.name} {case.model}" for word in options.only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            line = run_case(case, Path(folder))
        lines = [one for one in lines if one["case"] != case.name] + [line]
        RESULTS.write_text(json.dumps(lines, indent=1) + "\n")
        print(f"== {case.name}: status {line['status']}, {line['seconds']} s", *line["said"], sep="\n", flush=True)
    show(lines)


if __name__ == "__main__":
    main()

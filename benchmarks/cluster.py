"""What a long attack on a cluster costs beside its optimisation, and how it grows.

    python -m benchmarks.cluster                        # every part, about 35 minutes on a quiet machine of 2 cores
    python -m benchmarks.cluster recovery growth        # some parts; the others keep their numbers in the file
    python -m benchmarks.cluster --tiny --out tiny.json # does everything run? The figures mean nothing

checkpoints   the same run without and with `out`, in turns: at most 2 % of the time, 48 x 3 x 224 x 224, rounds of 20 s
coordination  share of the time that agents compute, 8 agents x 28.9 MB: at least 95 % in sync, 99 % in async mode
recovery      from a killed process to the agent's next step (5 s), and from a killed node (20 s)
scale         8, 64 and 512 simulated agents: seconds and bytes of the coordinator, whole and in parts
growth        memory of the coordinator and of Ray's control service per 1,000 rounds

The optimisers are fake, all else is real: an agent's step sleeps instead of computing (`cluster_attack.py`), and for
`scale` many agents live in two processes (`cluster_simulation.py`). Numbers go to `benchmarks/results/cluster.json` and
the tables of docs/scale.md, which says what they mean; with another `--out`, to that file alone. Beside each figure
stands the load of the machine when it was measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cluster_attack import TINY, Size
from .cluster_growth import growth
from .cluster_machine import machine
from .cluster_page import write_page
from .cluster_recovery import recovery
from .cluster_scale import scale
from .cluster_timing import checkpoints, coordination

RESULTS = Path(__file__).parent / "results" / "cluster.json"
# A step of 0.2 s; a round of 5 s has a checkpoint soon enough for the next fault.
_RECOVERY = Size(step_seconds=0.2, period=25)
# 4 steps of 5 s last as long as 20 of 1 s or 100 of 0.2 s, and cost the two cores that eight agents share here a fifth
# of the processor time: Adam on 7.2 million pixels is a GPU's work elsewhere.
_COORDINATION = Size(step_seconds=5.0, period=4)

PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "checkpoints": lambda: checkpoints(Size()),
    "coordination": lambda: coordination(_COORDINATION),
    "recovery": lambda: recovery(_RECOVERY),
    "scale": lambda: scale(),
    "growth": lambda: growth(),
}
TINY_PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "checkpoints": lambda: checkpoints(TINY, rounds=2, pairs=1),
    "coordination": lambda: coordination(TINY, rounds=2, agents=2, methods=("none",)),
    "recovery": lambda: recovery(TINY, agents=1, nodes=1, calm_seconds=1.0),
    "scale": lambda: scale((2, 4), Size(images=2, side=96), rounds=5, sharding_seeds=(2,), sharding_images=2),
    "growth": lambda: growth(rounds=40),
}


def judge(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each bar that the results can answer."""
    rows: list[dict[str, Any]] = []

    def add(bar: str, met: bool, found: str) -> None:
        rows.append({"bar": bar, "met": bool(met), "found": found})

    if "checkpoints" in results:
        overhead = results["checkpoints"]["overhead"]
        add("checkpoints cost at most 2 % of the time", overhead <= 0.02, f"{overhead:.2%}")
    for run in results.get("coordination", {}).get("runs", []):
        least = 0.95 if run["mode"] == "sync" else 0.99
        bar = f"agents compute at least {least:.0%} of the time, {run['mode']}, registration {run['registration']}"
        add(bar, run["computing"] >= least, f"{run['computing']:.2%}")
    for fault, limit in (("killed process", 5), ("killed node", 20)):
        if fault in results.get("recovery", {}):
            seconds = results["recovery"][fault]["median"]["step"]
            add(f"{fault}: next step within {limit} s", seconds <= limit, f"{seconds:.1f} s")
    return rows


def main() -> None:
    """Run the parts, print them, and keep their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS), metavar="part")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that everything runs")
    parser.add_argument("--page", action="store_true", help="write the tables of docs/scale.md from --out, and stop")
    parser.add_argument("--out", type=Path, default=RESULTS, help="json; parts that are not run keep what it has")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    for part in () if options.page else options.parts or PARTS:
        print(f"{part} …", flush=True)
        results[part] = {"machine": machine()} | (TINY_PARTS if options.tiny else PARTS)[part]()
        results["bars"] = judge(results)
        # After each part, so that a run that is cut short leaves what it has.
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps(results[part], indent=1), flush=True)
    if options.page or options.out == RESULTS:
        write_page(results)
    for row in results.get("bars", []):
        print(f"{'met   ' if row['met'] else 'MISSED'} {row['bar']}: {row['found']}")


if __name__ == "__main__":
    main()

"""Quality for the compute: ours beside the tuned peer (breaching 0.1.2), on photos that nothing was tuned on.

    python -m benchmarks.quality                          # everything, hours on one core; goes on where it stopped
    python -m benchmarks.quality --part peer --cells C4   # the peer's half, which does not depend on our code
    python -m benchmarks.quality --part ours --again      # ours once more where the code was another
    python -m benchmarks.quality --part table             # the tables of what is there

Rows are kept in benchmarks/results/quality.json, by cell, photo set, method and settings. Cells: C4, C8, C16
(ConvNet-32, random weights, 4, 8 and 16 images), T4 (trained on other photos), D8 (labels repeat), and apart from the
rest P4, a ResNet with global pooling where everybody fails. Batch norm in evaluation mode, 32 px. The photo sets are
those of `unseen_photos.py`.

peer   Its Inverting Gradients preset, true labels given. Its weight of total variation is tuned per cell by the mean
       PSNR over the first two of the sets that are reported, which favours it. One restart, and four of which it keeps
       the best by its own score.
ours   The default preset for all cells, labels recovered, as the coordinator of a real run composes it, in this
       process: one agent, four, and one with the steps of four; with layer peeling (the default) and without. Then
       shorter runs, each with a schedule of its own; the paper's preset once.
race   Processor seconds of the peer's run and of the shortest run of ours that has its PSNR, in turns.
table  Means over photo sets; differences on the same sets with 95 % bootstrap intervals over sets; the bars.

Seconds are processor time of one thread from the update on: labels, peeling, steps, registration, choice. PSNR is the
mean over images, matched by label, or by the best assignment where labels repeat or are wrong. The peer is optional:
`pip install -e '.[bench]' && pip install --no-deps breaching==0.1.2`.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path

import torch

from .cluster_machine import machine
from .quality_cells import CELLS
from .quality_methods import TUNED_OVER, Bench, measure_ours, measure_peer, measure_race
from .quality_rows import Store
from .quality_table import show, summarise

PARTS = ("peer", "ours", "race", "table")
RESULTS = Path(__file__).parent / "results" / "quality.json"


def measure(options: argparse.Namespace, store: Store, folder: Path) -> None:
    """The parts that measure, cell by cell."""
    bench = Bench(store, folder, options.again)
    sets, steps = tuple(options.sets), options.steps
    peelings = {"both": (True, False), "with": (True,), "without": (False,)}[options.peeling]
    for cell in options.cells:
        if "peer" in options.part:
            measure_peer(bench, cell, sets, steps, tuple(options.weights))
        if "ours" in options.part:
            measure_ours(bench, cell, sets, steps, peelings, options.alone)
        if "race" in options.part:
            measure_race(bench, cell, sets, steps, options.turns)


def main() -> None:
    """Measure the parts that are asked for, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--cells", nargs="+", choices=tuple(CELLS), default=list(CELLS))
    parser.add_argument("--sets", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="photo sets, by number")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--weights", type=float, nargs="+", default=list(TUNED_OVER), help="that the peer chooses from")
    parser.add_argument("--peeling", choices=("both", "with", "without"), default="both", help="for ours")
    parser.add_argument("--alone", action="store_true", help="of ours nothing but one agent, to see whether it is less")
    parser.add_argument("--turns", type=int, default=3, help="of the race")
    parser.add_argument("--again", action="store_true", help="measure ours also where other code has")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = Store(options.out)
    if {"peer", "race"} & set(options.part) and importlib.util.find_spec("breaching") is None:
        print("breaching is not installed, so the peer is not run; see --help.")
        options.part = [part for part in options.part if part not in ("peer", "race")]
    if set(options.part) - {"table"}:
        store.note("machine", machine())
    with tempfile.TemporaryDirectory() as folder:
        measure(options, store, Path(folder))
    if "table" in options.part:
        tables = summarise(store.rows, tuple(options.sets), options.steps)
        store.note("tables", tables)
        show(tables)


if __name__ == "__main__":
    main()

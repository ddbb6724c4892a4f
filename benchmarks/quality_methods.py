"""How each row of the benchmark of quality is measured."""

from __future__ import annotations

import hashlib
import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gradinversion.audit.metrics import label_accuracy
from gradinversion.coordinator.serial_group import attack
from gradinversion.settings.run import load_config

from .cluster_machine import load
from .peers import peer_images
from .quality_cells import Case, make_case
from .quality_rows import Row, Store, select, tuned_weight

TUNED_OVER = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Weights of total variation that the peer may choose from, per cell."""
TUNING_SETS = 2
"""How many of the reported photo sets it may choose by."""
RESTARTS = 4
LADDER = (25, 50, 100, 150, 200, 400)
"""Steps of shorter runs of ours, as shares of 1,000; the full run is the last rung."""
RACE_STEPS = (10, 110)
OURS = ("ours", "race")
ROOT = Path(__file__).resolve().parents[1]
CODE = ("agents", "capture", "coordinator", "peeling", "presets", "priors", "registration")
"""Folders that the numbers of an attack depend on."""


@dataclass(frozen=True)
class Ours:
    """Settings of an attack of ours."""

    agents: int
    steps: int
    peeling: bool = True
    preset: str = "gradinversion"


@dataclass(frozen=True)
class Peer:
    """Settings of the peer."""

    steps: int
    weight: float
    restarts: int = 1


class Bench:
    """Measures what the store does not have yet.

    Args:
        store: Of the rows.
        folder: For photos.
        again: Measure ours once more where other code has measured it.
    """

    def __init__(self, store: Store, folder: Path, again: bool = False) -> None:
        self.store = store
        self._folder, self._again, self._code = folder, again, code()

    def row(
        self,
        cell: str,
        number: int,
        method: str,
        settings: Mapping[str, Any],
        measure: Callable[[Case], dict[str, Any]],
    ) -> Row:
        """The row of these settings, measured now or before."""
        known = self.store.find(cell, number, method, settings)
        if known is not None and (not self._again or known.get("code", self._code) == self._code):
            return known
        case = make_case(cell, number, self._folder)
        row: Row = {"cell": cell, "set": number, "method": method, "settings": dict(settings)}
        row |= measure(case)
        row |= {"when": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "load": load()}
        # What the peer does depends on no code of ours.
        row |= {"code": self._code} if method in OURS else {}
        self.store.add(row)
        shown = {key: f"{row[key]:.2f}" for key in ("psnr", "seconds") if key in row}
        print(f"{time.strftime('%H:%M:%S')} {cell} set {number} {method} {dict(settings)} {shown}", flush=True)
        return row

    def constant(self, cell: str, number: int) -> Row:
        """The floor."""
        return self.row(cell, number, "constant", {}, lambda case: {"psnr": case.constant})

    def peer(self, cell: str, number: int, peer: Peer) -> Row:
        """A run of the peer, labels given."""
        return self.row(cell, number, "peer", asdict(peer), lambda case: run_peer(case, peer))

    def ours(self, cell: str, number: int, ours: Ours) -> Row:
        """An attack of ours; where peeling stops before it changes anything, with and without are one attack."""
        if not ours.peeling and ours.preset == "gradinversion":
            peeled = self.store.find(cell, number, "ours", asdict(ours) | {"peeling": True})
            if peeled is not None and not peeled["peeled"]:
                keep = {
                    name: value for name, value in peeled.items() if name not in ("cell", "set", "method", "settings")
                }
                return self.row(cell, number, "ours", asdict(ours), lambda case: keep | {"same": True})
        return self.row(cell, number, "ours", asdict(ours), lambda case: run_ours(case, ours))


def code() -> str:
    """Short digest of the sources of the package: what came out of other sources may not be what comes out now."""
    digest = hashlib.sha256()
    for path in sorted(
        path for folder in CODE for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml")
    ):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def run_peer(case: Case, peer: Peer) -> dict[str, Any]:
    """One row of the peer: quality and processor seconds."""
    importlib.import_module("breaching")
    labels = case.private.labels
    began = time.process_time()
    images = peer_images(case.update, case.model, labels, peer.steps, peer.weight, peer.restarts)
    seconds = time.process_time() - began
    return {"psnr": case.psnr(images, labels), "seconds": seconds}


def run_ours(case: Case, ours: Ours) -> dict[str, Any]:
    """One row of ours: everything from the update on; labels are recovered."""
    config = load_config(
        [
            f"preset={ours.preset}",
            f"agents.count={ours.agents}",
            f"agents.iterations={ours.steps}",
            f"peeling.enabled={str(ours.peeling).lower()}",
        ]
    )
    torch.set_num_threads(1)
    began = time.process_time()
    attacked = attack(case.update, case.model, config)
    seconds = time.process_time() - began
    found = attacked.reconstruction
    labels, invert = found.labels.labels, case.update.normalisation.invert
    seeds = [case.psnr(invert(one.images).clamp(0, 1), labels) for one in found.candidates]
    return {
        "psnr": case.psnr(found.images, labels),
        "consensus_psnr": case.psnr(found.consensus, labels),
        "seeds_psnr": sum(seeds) / len(seeds),
        "gradient_loss": found.gradient_loss,
        "labels": label_accuracy(labels, case.private.labels),
        "peeled": attacked.peeled,
        "seconds": seconds,
    }


def measure_peer(bench: Bench, cell: str, sets: tuple[int, ...], steps: int, weights: tuple[float, ...]) -> None:
    """Tune the peer on the first sets, then run it once and with restarts on all."""
    for number in sets:
        bench.constant(cell, number)
    tuning = sets[:TUNING_SETS]
    for weight in weights:
        for number in tuning:
            bench.peer(cell, number, Peer(steps, weight))
    weight_found = tuned_weight(bench.store.rows, cell, steps, tuning)
    assert weight_found is not None
    print(f"{cell}: the peer's weight of total variation is {weight_found}", flush=True)
    for restarts in (1, RESTARTS):
        for number in sets:
            bench.peer(cell, number, Peer(steps, weight_found, restarts))


def measure_ours(
    bench: Bench, cell: str, sets: tuple[int, ...], steps: int, peelings: tuple[bool, ...], alone: bool = False
) -> None:
    """One agent, four, one with the steps of four, and short runs; the paper's preset on the first set.

    Args:
        bench: Measures.
        cell: By its name.
        sets: Numbers of the photo sets.
        steps: Of one agent.
        peelings: With layer peeling, without, or both.
        alone: Measure nothing but the one agent.
    """
    for number in sets:
        bench.constant(cell, number)
        for peeling in peelings:
            bench.ours(cell, number, Ours(1, steps, peeling))
            if alone:
                continue
            bench.ours(cell, number, Ours(RESTARTS, steps, peeling))
            bench.ours(cell, number, Ours(1, RESTARTS * steps, peeling))
            for rung in ladder(steps)[:-1]:
                bench.ours(cell, number, Ours(1, rung, peeling))
    if not alone:
        bench.ours(cell, sets[0], Ours(RESTARTS, steps, False, "gradinversion_paper"))


def ladder(steps: int) -> list[int]:
    """Steps of the runs among which the first is looked for that reaches the peer."""
    return [*sorted({max(1, rung * steps // 1000) for rung in LADDER} - {steps}), steps]


def first_reaching(rows: list[Row], cell: str, number: int, steps: int, peeling: bool, psnr: float) -> Row | None:
    """The shortest run of one agent that has this PSNR; None where none of those measured has it."""
    for rung in ladder(steps):
        asked = Ours(1, rung, peeling)
        row = select(rows, cell, "ours", **asdict(asked)).get(number)
        if row is not None and row["psnr"] >= psnr:
            return row
    return None


def measure_race(bench: Bench, cell: str, sets: tuple[int, ...], steps: int, turns: int) -> None:
    """Time the peer's run and the shortest of ours that reaches its quality, in turns."""
    rows = bench.store.rows
    weight = tuned_weight(rows, cell, steps, sets[:TUNING_SETS])
    for number in sets:
        peer = select(rows, cell, "peer", steps=steps, weight=weight, restarts=1).get(number)
        for peeling in (True, False):
            found = peer and first_reaching(rows, cell, number, steps, peeling, peer["psnr"])
            if peer is None or found is None or weight is None:
                print(f"{cell} set {number}, peeling {peeling}: no run to race with", flush=True)
                continue
            ours = raced_as(found)
            bench.row(
                cell,
                number,
                "race",
                asdict(ours) | {"peer_steps": steps},
                partial(race, ours=ours, steps=steps, weight=weight, turns=turns),
            )


def raced_as(row: Row) -> Ours:
    """The settings under which a run is timed: without peeling, where nothing was peeled, it is the one with it."""
    return replace(Ours(**row["settings"]), peeling=row["settings"]["peeling"] or row.get("same", False))


def race(case: Case, ours: Ours, steps: int, weight: float, turns: int) -> dict[str, Any]:
    """Processor seconds of both, turn by turn; the peer's are those of a short run, carried on to all steps."""
    found: dict[str, list[float]] = {"peer_seconds": [], "ours_seconds": []}
    short, long = RACE_STEPS
    run_peer(case, Peer(short, weight))
    for _ in range(turns):
        begin, end = (run_peer(case, Peer(some, weight))["seconds"] for some in (short, long))
        found["peer_seconds"].append(begin + (end - begin) / (long - short) * (steps - short))
        found["ours_seconds"].append(run_ours(case, ours)["seconds"])
    return found

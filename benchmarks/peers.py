"""The cells C4 and C8 beside the peer (breaching 0.1.2, MIT) on the same captured update.

    python -m benchmarks.peers                 # both cells, ours and the peer's, one table; json beside it
    python -m benchmarks.peers --cells 4 --shift 3 --no-peer

Cells: ConvNet-32, random init of seed 0, batch norm in evaluation mode, natural photos at 32 px, labels 0..B-1, batch 4
and 8. Ours is the real command (`run.py`) in its default preset, the same for both cells. The peer attacks the very
update that ours attacked; it is given the labels, and is run with its own defaults and with its total-variation weight
tuned per cell on these photos. PSNR is the mean over images, matched by label.

The peer is optional: `pip install -e '.[bench]' && pip install --no-deps breaching==0.1.2`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from gradinversion.audit import constant_images, psnr
from gradinversion.capture import CapturedUpdate, ClientConfig, PrivateBatch, simulate_client
from rich.console import Console
from rich.table import Table

from .photos import write_photos

ROOT = Path(__file__).resolve().parents[1]
PEER_TUNED_WEIGHT = {4: 0.005, 8: 0.02}
OURS = {
    "ours, default preset (4 agents)": (),
    "ours, one agent": ("agents.count=1",),
    "ours without layer peeling (4 agents)": ("peeling.enabled=false",),
    "ours, gradinversion_paper at 1,000 steps (4 agents)": (
        "preset=gradinversion_paper",
        "agents.count=4",
        "agents.iterations=1000",
    ),
}


def run_ours(photos: Path, batch: int, words: tuple[str, ...], out: Path) -> dict[str, Any]:
    """The real command on one cell, and what its report says."""
    command = [sys.executable, str(ROOT / "run.py"), f"out={out}", f"client.images={photos}"]
    command += [f"client.batch_size={batch}", *words]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"RAY_ADDRESS": "local"})
    report = json.loads((out / "report.json").read_text())
    return {
        "psnr": report["psnr_mean"],
        "labels": report["label_accuracy"],
        "consensus": report["consensus_psnr"],
        "agents": report["agents_psnr_mean"],
        "constant": report["constant_image_psnr"],
        "seconds": time.perf_counter() - began,
    }


def run_peer(
    update: CapturedUpdate, model: torch.nn.Module, private: PrivateBatch, steps: int, weight: float | None
) -> dict[str, Any]:
    """The peer's Inverting Gradients preset on the same update, with the true labels given."""
    importlib.import_module("breaching")  # which takes longer than a short run
    began = time.perf_counter()
    images = peer_images(update, model, private.labels, steps, weight)
    return {"psnr": float(psnr(images, private.images).mean()), "seconds": time.perf_counter() - began}


def peer_images(
    update: CapturedUpdate,
    model: torch.nn.Module,
    labels: torch.Tensor,
    steps: int,
    weight: float | None,
    restarts: int = 1,
) -> torch.Tensor:
    """What the peer's Inverting Gradients preset finds on an update, in [0, 1], in the order of the labels.

    Args:
        update: Captured from the model.
        model: The network.
        labels: The true ones: the peer is given them.
        steps: Of each restart.
        weight: Of total variation; None for the preset's own.
        restarts: Of which the peer keeps the one that is best by its own score.
    """
    import breaching

    logging.getLogger("breaching").setLevel(logging.WARNING)
    overrides = [f"optim.max_iterations={steps}", "optim.callback=1000000", f"restarts.num_trials={restarts}"]
    overrides += [] if weight is None else [f"regularization.total_variation.scale={weight}"]
    channels, height, width = update.image_shape

    class Metadata:
        modality = "vision"
        normalize = True
        mean, std = update.normalisation.mean, update.normalisation.std
        shape = (channels, height, width)
        classes = len(list(update.gradients.values())[-1])

    buffers = [buffer.clone() for buffer in model.buffers()]
    server = [{"parameters": [p.detach() for p in model.parameters()], "buffers": buffers, "metadata": Metadata}]
    facts = {"num_data_points": update.image_count, "labels": labels.clone(), "local_hyperparams": None}
    shared = [{"gradients": [g.clone() for g in update.gradients.values()], "buffers": None, "metadata": facts}]
    torch.set_num_threads(1)  # faster than two on this network
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        config = breaching.get_attack_config("invertinggradients", overrides=overrides)
        setup = {"device": torch.device("cpu"), "dtype": torch.float}
        attack = breaching.attacks.prepare_attack(model, torch.nn.CrossEntropyLoss(), config, setup)
        torch.manual_seed(0)
        found, _ = attack.reconstruct(server, shared, {}, dryrun=False)
    images: torch.Tensor = update.normalisation.invert(found["data"].detach()).clamp(0, 1)
    return images


def cell(batch: int, shift: int, steps: int, peer: bool, folder: Path) -> list[dict[str, Any]]:
    """All rows of one cell."""
    photos = write_photos(folder / f"photos-{shift}", shift)
    client = dataclasses.replace(ClientConfig(), images=str(photos), batch_size=batch)
    update, model, private = simulate_client(client, 0)
    floor = float(psnr(constant_images(private.images), private.images).mean())
    rows: list[dict[str, Any]] = [{"cell": f"C{batch}", "method": "constant image", "psnr": floor}]
    if peer:
        for name, weight in (("defaults", None), ("weight tuned to this cell", PEER_TUNED_WEIGHT[batch])):
            found = run_peer(update, model, private, steps, weight)
            rows.append({"cell": f"C{batch}", "method": f"breaching Inverting Gradients, {name}", **found})
    for index, (name, words) in enumerate(OURS.items()):
        found = run_ours(photos, batch, (*words, f"agents.iterations={steps}"), folder / f"out-{batch}-{index}")
        rows.append({"cell": f"C{batch}", "method": name, **found})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """One table; a dash where a figure does not exist for a row."""
    table = Table(title="PSNR in dB, seconds as a whole process")
    columns = ("cell", "method", "psnr", "labels", "agents", "consensus", "seconds")
    headings = ("cell", "method", "PSNR", "labels", "mean of single agents", "consensus", "seconds")
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        values = [row.get(column) for column in columns]
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else "–" if v is None else str(v) for v in values))
    Console(width=140).print(table)


def main() -> None:
    """Print the table and write ``benchmarks/results/peers.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[4, 8], choices=[4, 8])
    parser.add_argument("--shift", type=int, default=0, help="rotate the photo set: another set of photos")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--no-peer", action="store_true", help="leave the peer out")
    options = parser.parse_args()
    peer = not options.no_peer and importlib.util.find_spec("breaching") is not None
    if not peer and not options.no_peer:
        print("breaching is not installed, so the peer's rows are left out; see --help.")
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for batch in options.cells for row in cell(batch, options.shift, options.steps, peer, Path(folder))]
    show(rows)
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    facts = {"shift": options.shift, "steps": options.steps, "torch": torch.__version__, "rows": rows}
    (results / f"peers-shift{options.shift}.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()

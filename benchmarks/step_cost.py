"""What one step of one agent costs beside a bare loop with the same terms, and beside the peer, in turns.

    python -m benchmarks.step_cost                     # ConvNet-32 and ResNet-18; json in benchmarks/results/
    python -m benchmarks.step_cost --no-peer --turns 9

All attack the same captured update with the same threads, turn by turn in one process: ours (`Agent.run`, without layer
peeling, the default's terms), a bare loop (hand-written below: forward pass, gradient, the same loss and total
variation, Adam of torch with the sign of the derivative, box) and breaching 0.1.2 where it is installed (its Inverting
Gradients preset: cosine loss, total variation, signed Adam). Milliseconds of processor time per step: the median over
the turns, the ratio to the bare loop of the same turn, and its quartiles. Memory is the largest resident size of a
fresh process after some steps, and its growth from before the first pass through the network.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gradinversion.agents import Agent, AgentsConfig, ObjectiveConfig
from gradinversion.capture import (
    IMAGENET,
    BatchNormMode,
    CapturedUpdate,
    PrivateBatch,
    capture_gradient,
    load_model,
    weight_hash,
)
from gradinversion.capture.facts import CROSS_ENTROPY, known_facts
from gradinversion.target import Target
from torch import Tensor, nn

from .peers import run_peer

# Network, classes, batch, side. The photos do not matter for time: noise stands in for them.
WORKLOADS = {"ConvNet-32": ("convnet", 10, 4, 32), "ResNet-18, 64 px": ("resnet18", 100, 8, 64)}
RESULTS = Path(__file__).parent / "results" / "step_cost.json"
STEPS = {"ConvNet-32": 40, "ResNet-18, 64 px": 6}


def make_workload(name: str) -> tuple[CapturedUpdate, nn.Module, PrivateBatch]:
    """The captured update of a workload."""
    network, classes, batch, side = WORKLOADS[name]
    model = load_model(network, classes, side, seed=0)
    images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(batch)
    return capture_gradient(model, images, labels), model, PrivateBatch(images, labels, ("noise",) * batch)


def our_steps(update: CapturedUpdate, model: nn.Module, labels: Tensor, steps: int) -> Callable[[], None]:
    """So many steps of one agent; each call makes the next ones."""
    agent = Agent(Target(update, model, labels), ObjectiveConfig(), AgentsConfig(iterations=10**6), 0)

    def run() -> None:
        agent.run(agent.step + steps)

    return run


def bare_steps(update: CapturedUpdate, model: nn.Module, labels: Tensor, steps: int) -> Callable[[], None]:
    """The same arithmetic without anything around it."""
    model.eval()
    parameters, targets = list(model.parameters()), list(update.gradients.values())
    scale = sum(float(target.norm()) for target in targets)
    low, high = update.normalisation.bounds()
    images = torch.randn((update.image_count, *update.image_shape)).requires_grad_()
    optimizer = torch.optim.Adam([images], lr=0.1)

    def run() -> None:
        for _ in range(steps):
            loss = F.cross_entropy(model(images), labels)
            found = torch.autograd.grad(loss, parameters, create_graph=True)
            match = torch.stack([(a - b).norm() for a, b in zip(found, targets, strict=True)]).sum() / scale
            vertical = F.pad(images[..., 1:, :] - images[..., :-1, :], (0, 0, 0, 1))
            horizontal = F.pad(images[..., :, 1:] - images[..., :, :-1], (0, 1))
            variation = ((vertical.square() + horizontal.square()).mean(1) + 1e-8).sqrt().mean()
            (derivative,) = torch.autograd.grad(match + 0.2 * variation, images)
            images.grad = derivative.sign()
            optimizer.step()
            with torch.no_grad():
                images.copy_(torch.maximum(torch.minimum(images, high), low))

    return run


def peer_steps(update: CapturedUpdate, model: nn.Module, private: PrivateBatch, steps: int) -> Callable[[], None]:
    """A run of the peer from its start, set-up included; many steps, so that it weighs little."""

    def run() -> None:
        run_peer(update, model, private, steps, None)

    return run


def timed(run: Callable[[], None], steps: int) -> float:
    """Milliseconds of processor time per step."""
    began = time.process_time()
    run()
    return 1000 * (time.process_time() - began) / steps


def compare(name: str, turns: int, peer: bool) -> dict[str, Any]:
    """Milliseconds per step of each, turn by turn."""
    update, model, private = make_workload(name)
    steps = STEPS[name]
    running = {
        "bare": (bare_steps(update, model, private.labels, steps), steps),
        "ours": (our_steps(update, model, private.labels, steps), steps),
    }
    if peer:
        running["peer"] = peer_steps(update, model, private, 4 * steps), 4 * steps
    for run, _ in running.values():
        run()
    found: dict[str, list[float]] = {key: [] for key in running}
    for turn in range(turns):
        # Every second turn the other way round, so that no one is always the first.
        for key in list(running)[:: -1 if turn % 2 else 1]:
            found[key].append(timed(*running[key]))
    line: dict[str, Any] = {"workload": name, "turns": turns, "ms": {k: float(np.median(v)) for k, v in found.items()}}
    for key in found:
        ratios = np.asarray(found[key]) / np.asarray(found["bare"])
        line[f"{key} over bare"] = [float(value) for value in np.quantile(ratios, (0.5, 0.25, 0.75))]
    return line


def footprint(name: str, what: str) -> tuple[float, float]:
    """Largest resident size of this process after some steps, and by how much it grew, in MiB."""
    torch.manual_seed(0)
    network, classes, batch, side = WORKLOADS[name]
    model = load_model(network, classes, side, seed=0)
    # No pass is made to get this update: the first one is to count.
    gradients = {key: torch.randn_like(parameter) for key, parameter in model.named_parameters()}
    update = CapturedUpdate(
        gradients=gradients,
        image_shape=(3, side, side),
        model_id="",
        weight_hash=weight_hash(model),
        facts=known_facts(batch, IMAGENET, BatchNormMode.EVAL, CROSS_ENTROPY),
    )
    before = largest_size()
    make = our_steps if what == "ours" else bare_steps
    make(update, model, torch.arange(batch), 10)()
    whole = largest_size()
    return whole / 1024, (whole - before) / 1024


def largest_size() -> int:
    """The largest resident size of this process so far, in KiB (Linux)."""
    # getrusage would tell the parent's: the figure outlives the fork.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def memory(name: str, turns: int) -> dict[str, list[float]]:
    """Median footprint of ours and of the bare loop, each in fresh processes, in turns."""
    found: dict[str, list[list[float]]] = {"bare": [], "ours": []}
    for _ in range(turns):
        for what, values in found.items():
            command = [sys.executable, "-m", "benchmarks.step_cost", "--footprint", name, what]
            words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            values.append([float(word) for word in words])
    return {what: [float(value) for value in np.median(values, axis=0)] for what, values in found.items()}


def main() -> None:
    """Print the table and write its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--workloads", nargs="+", choices=tuple(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--footprint", nargs=2, metavar=("WORKLOAD", "WHAT"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.footprint:
        print(*footprint(*options.footprint))
        return
    peer = not options.no_peer and importlib.util.find_spec("breaching") is not None
    if not peer and not options.no_peer:
        print("breaching is not installed, so the peer's column is left out.")
    lines = []
    for name in options.workloads:
        line = compare(name, options.turns, peer) | {"memory_mib": memory(name, 3)}
        lines.append(line)
        columns = [f"{key} {value:.1f} ms" for key, value in line["ms"].items()]
        columns += [
            f"{key} {line[key][0]:.3f} [{line[key][1]:.3f} {line[key][2]:.3f}]" for key in line if "over" in key
        ]
        columns += [f"memory {key} {size:.0f} MiB (grew by {by:.0f})" for key, (size, by) in line["memory_mib"].items()]
        print(f"{name}: {', '.join(columns)}", flush=True)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps({"torch": torch.__version__, "threads": 1, "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()

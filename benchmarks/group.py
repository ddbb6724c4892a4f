"""What group consistency and registration do on real intermediates, at equal compute.

    python -m benchmarks.group                     # every cell, 5 runs; json in benchmarks/results/
    python -m benchmarks.group --cells C4 --tune   # also start, period and weight of the group term
    python -m benchmarks.group --cells C8 --first 3 --add --out F   # go on after three runs that F holds

A run is one photo set and four seeds, in this process, without Ray and without layer peeling (with it the seeds of
these cells come out alike, and there is nothing to bring together). All variants of a run share their steps up to the
start of the group term and continue from copies of the same agents. Cells: C4 and C8 (ConvNet-32, random weights),
`trained` (the same network, trained to tell crops of photos apart) and `GAP` (a small ResNet with random weights, which
averages over all places before its last layer, so that the gradient says little about where things are).

`one agent` has four times the steps of each of the four agents. The answer is the one that the coordinator would give:
consensus or seeds, by evidence. Differences are to the run without a group term, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gradinversion.agents import Agent, AgentsConfig, ObjectiveConfig
from gradinversion.agents.objective import Objective
from gradinversion.audit import psnr
from gradinversion.capture import capture_gradient, load_images, load_model
from gradinversion.coordinator.selection import choose
from gradinversion.registration import Consensus, RegistrationConfig, register
from gradinversion.target import Target
from torch import Tensor, nn

from .networks import POOLED_RESNET
from .photos import write_photos
from .registration_measures import interval

AGENTS = 4
CELLS = {"C4": ("convnet", 4), "C8": ("convnet", 8), "trained": ("trained", 4), "GAP": (POOLED_RESNET, 4)}
RESULTS = Path(__file__).parent / "results" / "registration_group.json"
PLAIN = RegistrationConfig(method="none")
COARSE = RegistrationConfig(method="coarse", consensus="huber")
HUBER = RegistrationConfig(consensus="huber")
WIENER = RegistrationConfig(consensus="wiener")


@dataclass(frozen=True)
class Variant:
    """How the seeds of a run meet."""

    registration: RegistrationConfig = PLAIN
    weight: float = ObjectiveConfig().group_weight
    start: float = 0.5
    period: float = 0.1
    """Share of the steps between two consensuses."""


VARIANTS = {
    "no group": Variant(weight=0.0),
    "none": Variant(),
    "coarse huber": Variant(COARSE),
    "coarse_to_fine huber": Variant(HUBER),
    "coarse_to_fine wiener": Variant(WIENER),
}
TUNING = {
    **{f"weight {weight}": Variant(weight=weight) for weight in (0.003, 0.03, 0.1, 0.3)},
    **{f"start {start}": Variant(start=start) for start in (0.25, 0.75)},
    **{f"period {period}": Variant(period=period) for period in (0.05, 0.25)},
}


@dataclass(frozen=True)
class Case:
    """One captured update and the truth about it."""

    target: Target
    truth: Tensor

    def psnr(self, images: Tensor) -> float:
        """Mean over the batch, in dB, of normalised images."""
        shown = self.target.update.normalisation.invert(images).clamp(0, 1)
        return float(psnr(shown, self.truth).mean())


def make_case(cell: str, run: int, folder: Path) -> Case:
    """The update of a cell on the run's photo set; labels are 0, 1, 2, ..."""
    name, batch = CELLS[cell]
    photos = write_photos(folder / f"photos-{run}", run)
    truth, _ = load_images(str(photos), batch, 32)
    model = trained_network(photos) if name == "trained" else load_model(name, seed=run)
    labels = torch.arange(batch)
    return Case(Target(capture_gradient(model, truth, labels), model, labels), truth)


def trained_network(photos: Path, steps: int = 150) -> nn.Module:
    """ConvNet-32 that tells random crops of ten photos apart; running statistics are those of its training."""
    pictures, _ = load_images(str(photos), 10, 64)
    model = load_model("convnet", seed=0)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(steps):
        labels = torch.randint(0, 10, (32,), generator=generator)
        corners = torch.randint(0, 33, (32, 2), generator=generator).tolist()
        crops = [pictures[k, :, i : i + 32, j : j + 32] for k, (i, j) in zip(labels, corners, strict=True)]
        inputs = 2 * torch.stack(crops) - 1
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval()


def make_agents(case: Case, run: int, steps: int, variant: Variant) -> list[Agent]:
    """Four agents at their first step."""
    objective = ObjectiveConfig(group_weight=variant.weight)
    config = AgentsConfig(iterations=steps)
    return [Agent(case.target, objective, config, AGENTS * run + k) for k in range(AGENTS)]


def descend(case: Case, agents: list[Agent], steps: int, variant: Variant) -> tuple[Consensus, Tensor]:
    """Rounds up to the last step; the last consensus and the candidates."""
    period = max(1, round(variant.period * steps))
    consensus: Consensus | None = None
    images = torch.stack([agent.images for agent in agents])
    while agents[0].step < steps:
        if variant.weight and agents[0].step >= round(variant.start * steps):
            consensus = register(images, config=variant.registration)
        until = min(steps, agents[0].step + period)
        for agent in agents:
            agent.run(until, consensus.images if consensus else None)
        images = torch.stack([agent.images for agent in agents])
    return register(images, config=variant.registration), images


def measured(case: Case, consensus: Consensus, images: Tensor, seconds: float) -> dict[str, float]:
    """What became of a run."""
    objective = Objective(case.target, ObjectiveConfig())
    answer = choose(images, consensus.images, objective.evidence).images
    return {
        "psnr": case.psnr(answer),
        "consensus_psnr": case.psnr(consensus.images),
        "seed_psnr": float(np.mean([case.psnr(candidate) for candidate in images])),
        "gradient_loss": objective.gradient_loss(answer),
        "agreement": float(consensus.agreement.mean()),
        "rejected": float(consensus.rejected.float().mean()),
        "seconds": seconds,
    }


def one_run(cell: str, run: int, steps: int, variants: dict[str, Variant], folder: Path) -> dict[str, Any]:
    """All variants of one run, one agent with the compute of four, and the consensus of each method on the way."""
    case = make_case(cell, run, folder)
    shared: dict[int, tuple[list[dict[str, Tensor]], float]] = {}
    agents = make_agents(case, run, steps, VARIANTS["no group"])
    intermediates: dict[str, dict[str, float]] = {}
    began = time.process_time()
    for share in (0.25, 0.5, 0.75, 1.0):
        at = round(share * steps)
        for agent in agents:
            agent.run(at)
        images = torch.stack([agent.images for agent in agents])
        shared[at] = [agent.state() for agent in agents], time.process_time() - began
        kinds = {"none": PLAIN, "huber": HUBER, "wiener": WIENER}
        found = {name: case.psnr(register(images, config=config).images) for name, config in kinds.items()}
        found |= {"seed": float(np.mean([case.psnr(candidate) for candidate in images]))}
        intermediates[f"{share:.0%}"] = found
        if share == 1:
            results = {"no group": measured(case, register(images, config=PLAIN), images, shared[at][1])}
    for name, variant in variants.items():
        if name == "no group":
            continue
        agents = make_agents(case, run, steps, variant)
        states, before = shared[round(variant.start * steps)]
        for agent, state in zip(agents, states, strict=True):
            agent.restore(state)
        began = time.process_time()
        consensus, images = descend(case, agents, steps, variant)
        results[name] = measured(case, consensus, images, before + time.process_time() - began)
    began = time.process_time()
    config = AgentsConfig(iterations=AGENTS * steps)
    alone = Agent(case.target, replace(ObjectiveConfig(), group_weight=0.0), config, AGENTS * run)
    alone.run(AGENTS * steps)
    images = alone.images[None]
    results["one agent"] = measured(case, register(images, config=PLAIN), images, time.process_time() - began)
    return {"cell": cell, "run": run, "intermediates": intermediates, "results": results}


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per cell and variant: means, and the difference in PSNR of the answer to the run without a group term."""
    generator = np.random.default_rng(0)
    lines: list[dict[str, Any]] = []
    for cell in dict.fromkeys(row["cell"] for row in rows):
        own = [row["results"] for row in rows if row["cell"] == cell]
        for name in own[0]:
            line = {key: float(np.mean([found[name][key] for found in own])) for key in own[0][name]}
            for key in ("psnr", "consensus_psnr"):
                gains = [found[name][key] - found["no group"][key] for found in own]
                gain = interval(gains, [float(i) for i in range(len(gains))], generator)
                line |= {f"{key}_gain": gain[0], f"{key}_low": gain[1], f"{key}_high": gain[2]}
            lines.append({"cell": cell, "variant": name, "runs": len(own), **line})
    return lines


def show(rows: list[dict[str, Any]], lines: list[dict[str, Any]]) -> None:
    """The consensus on the way, then the end of each variant."""
    print("PSNR of the consensus of four seeds without a group term (mean over runs): seed, none, huber, wiener")
    for cell in dict.fromkeys(row["cell"] for row in rows):
        own = [row["intermediates"] for row in rows if row["cell"] == cell]
        for at in own[0]:
            values = [float(np.mean([found[at][key] for found in own])) for key in ("seed", "none", "huber", "wiener")]
            print(f"{cell:8} after {at:>4} of the steps " + " ".join(f"{value:6.2f}" for value in values))
    print("cell     variant                runs answer difference [95 %]      consensus  seeds   loss  seconds  agree")
    for line in lines:
        print(
            f"{line['cell']:8} {line['variant']:22} {line['runs']:4} {line['psnr']:6.2f} {line['psnr_gain']:+5.2f} "
            f"[{line['psnr_low']:+5.2f} {line['psnr_high']:+5.2f}] {line['consensus_psnr']:6.2f} "
            f"{line['consensus_psnr_gain']:+5.2f} {line['seed_psnr']:6.2f} {line['gradient_loss']:6.3f} "
            f"{line['seconds']:6.1f} {line['agreement']:5.2f}",
            flush=True,
        )


def main() -> None:
    """Print the tables and write their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=tuple(CELLS), default=list(CELLS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first run; with --add the others come from the file")
    parser.add_argument("--add", action="store_true", help="keep what the file already has")
    parser.add_argument("--steps", type=int, default=240, help="of each of the four agents")
    parser.add_argument("--tune", action="store_true", help="also other starts, periods and weights")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(options.out.read_text())["rows"] if options.add else []
    with tempfile.TemporaryDirectory() as folder:
        for cell in options.cells:
            variants = VARIANTS | (TUNING if options.tune else {})
            for run in range(options.first, options.runs):
                rows.append(one_run(cell, run, options.steps, variants, Path(folder)))
                facts = {"steps": options.steps, "agents": AGENTS, "lines": table(rows), "rows": rows}
                options.out.parent.mkdir(exist_ok=True)
                options.out.write_text(json.dumps(facts, indent=1) + "\n")
            show([row for row in rows if row["cell"] == cell], [x for x in table(rows) if x["cell"] == cell])


if __name__ == "__main__":
    main()

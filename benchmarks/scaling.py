"""Agents on one machine: steps per second of each core or GPU, and memory of each agent.

    python -m benchmarks.scaling                                 # 1, 2, 4 and 8 agents; json in benchmarks/results/
    python -m benchmarks.scaling --agents 1 8 --turns 3 --workload "ResNet-18, 64 px"

The real run: actors and a coordinator on a Ray of this machine, rounds, consensus from half of the steps on. No
checkpoints, no layer peeling, one compute thread per agent. Steps per second are those of all agents over the wall
seconds of whole rounds (the consensus included), from the second round on. Efficiency is that over what one agent
makes, times the cores (or GPUs) that so many agents can keep busy. Memory is resident memory in which shared pages are
divided among their users (PSS), the median over the agents at its highest; on GPUs also that of the devices for all
agents. Run it on a machine that does nothing else; the load stands beside each figure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from gradinversion.agents import AgentsConfig
from gradinversion.cluster import reconstruct
from gradinversion.coordinator import AttackConfig, CoordinatorConfig, Status
from gradinversion.peeling import PeelingConfig
from rich.console import Console
from rich.table import Table

from .cluster_machine import MIB, load, local_ray, machine, ours, proportional_memory, rounded
from .step_cost import WORKLOADS, make_workload

RESULTS = Path(__file__).parent / "results" / "scaling.json"
_WARM_ROUNDS = 1
Line = dict[str, Any]


@dataclass
class Watcher:
    """Takes down, while a run goes on, how long its rounds last and how large its processes are."""

    rounds: dict[int, float] = field(default_factory=dict)
    """Seconds by round, from 1."""
    computing: dict[int, float] = field(default_factory=dict)
    agents: list[list[int]] = field(default_factory=list)
    """Bytes of each agent's process, each time."""
    coordinator: int = 0
    device: int = 0
    """Bytes in use on all GPUs."""

    def __call__(self, status: Status) -> None:
        """What `reconstruct` calls about twice a second."""
        if status.round > 0 and status.round_seconds > 0:
            self.rounds.setdefault(status.round, status.round_seconds)
            self.computing.setdefault(status.round, status.computing)
            # A process may end while it is looked at.
            with contextlib.suppress(OSError, KeyError):
                self.agents.append([proportional_memory(process) for process in ours("ray::AgentProcess")])
                sizes = [proportional_memory(process) for process in ours("ray::CoordinatorProcess")]
                self.coordinator = max([self.coordinator, *sizes])
            self.device = max(self.device, device_memory())

    @property
    def agent_bytes(self) -> float:
        """Median over the agents, at its highest."""
        return max((statistics.median(sizes) for sizes in self.agents if sizes), default=0.0)


def device_memory() -> int:
    """Bytes in use on all GPUs of this machine."""
    found = [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]
    return sum(whole - free for free, whole in found)


def steps_per_second(agents: int, period: int, rounds: dict[int, float]) -> float:
    """Of all agents, over the rounds that are known but for the first.

    Args:
        agents: How many make each round.
        period: Steps of a round.
        rounds: Seconds by round, from 1.
    """
    later = [seconds for index, seconds in rounds.items() if index > _WARM_ROUNDS]
    if not later:
        raise ValueError(
            f"of the rounds after the first none was seen (seen: {sorted(rounds)}): give longer rounds, with --period."
        )
    return agents * period * len(later) / sum(later)


def processors(agents: int, cores: int, gpus: int) -> int:
    """How many cores, or GPUs where there are any, so many agents can keep busy."""
    return min(agents, gpus or cores)


def measure(workload: str, agents: int, period: int, rounds: int) -> Line:
    """One run."""
    update, model, _ = make_workload(workload)
    facts = machine()
    cores, gpus = int(facts["cpus"]), torch.cuda.device_count()
    config = AttackConfig(
        peeling=PeelingConfig(enabled=False),
        agents=AgentsConfig(count=agents, iterations=period * rounds, threads=1),
        coordinator=CoordinatorConfig(period=period),
    )
    if gpus:
        # Rounded down, so that all agents fit.
        part = min(1.0, int(100 * gpus / agents) / 100)
        own = replace(config.agents, gpus=part, cpus=min(1.0, int(100 * cores / agents) / 100))
        config = replace(config, agents=own)
    watcher = Watcher()
    idle = device_memory()
    with local_ray():
        result = reconstruct(update, model, config, watch=watcher)
    busy = processors(agents, cores, gpus)
    speed = steps_per_second(agents, period, watcher.rounds)
    return {
        "agents": agents,
        "processors": busy,
        "steps_per_second": speed,
        "per_processor": speed / busy,
        "computing": statistics.median(watcher.computing.values()),
        "rounds_seen": len(watcher.rounds),
        "rounds": result.rounds,
        "agent_mib": watcher.agent_bytes / MIB,
        "coordinator_mib": watcher.coordinator / MIB,
        "device_mib": max(0, watcher.device - idle) / MIB,
        "load": load(),
    }


def summarise(runs: list[Line]) -> list[Line]:
    """Medians over the turns, one line per number of agents; the efficiency is that of each turn."""
    alone = [run["per_processor"] for run in runs if run["agents"] == 1]
    lines = []
    for agents in dict.fromkeys(run["agents"] for run in runs):
        own = [run for run in runs if run["agents"] == agents]
        line: Line = {name: rounded(statistics.median(run[name] for run in own)) for name in own[0]}
        # Without a run of one agent there is nothing to compare with.
        shares = [run["per_processor"] / one for run, one in zip(own, alone, strict=False)]
        lines.append(line | {"efficiency": rounded(statistics.median(shares)) if shares else None, "turns": len(own)})
    return lines


def show(workload: str, lines: list[Line], on_gpus: bool) -> None:
    """One line per number of agents."""
    what = "GPU" if on_gpus else "core"
    table = Table(title=f"{workload}: agents on one machine")
    headings = ("agents", "steps/s", f"steps/s per {what}", "efficiency", "computing", "MiB per agent", "coordinator")
    for heading in (*headings, *(("MiB on GPUs",) if on_gpus else ()), "load"):
        table.add_column(heading, justify="right")
    for line in lines:
        share = "–" if line["efficiency"] is None else f"{line['efficiency']:.1%}"
        values = [f"{line['agents']:.0f}", f"{line['steps_per_second']:.1f}", f"{line['per_processor']:.1f}", share]
        values += [f"{line['computing']:.1%}", f"{line['agent_mib']:.0f}", f"{line['coordinator_mib']:.0f}"]
        values += [f"{line['device_mib']:.0f}"] if on_gpus else []
        table.add_row(*values, f"{line['load']:.1f}")
    Console(width=130).print(table)


def main() -> None:
    """Print the table and write its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--workload", choices=tuple(WORKLOADS), default=next(iter(WORKLOADS)))
    parser.add_argument("--period", type=int, default=200, help="steps of a round; a round should last two seconds")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    runs: list[Line] = []
    for _ in range(options.turns):
        for agents in options.agents:
            runs.append(measure(options.workload, agents, options.period, options.rounds))
            print({name: rounded(value) for name, value in runs[-1].items()}, flush=True)
    lines = summarise(runs)
    facts = {"period": options.period, "rounds": options.rounds, "gpus": torch.cuda.device_count()}
    known: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    known[options.workload] = {"machine": machine(), **facts, "lines": lines, "runs": runs}
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(known, indent=1) + "\n")
    show(options.workload, lines, torch.cuda.device_count() > 0)


if __name__ == "__main__":
    main()

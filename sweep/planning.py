"""Before the first cell: what each costs here, what fits the time, and the settings with which each is run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace

from ..cluster import Job, run_side_by_side
from ..coordinator import Storage, StorageError
from ..settings.run import RunConfig, settings
from ..storage.json_file import read_json
from ..storage.schema import misfit
from .budget import Cost, Plan, fit, interpolate
from .calibrate import calibrate
from .grid import Cell, Grid
from .placing import Placing

_FILE = "plan.json"
_LARGEST = 16 * 2**20
# These say where an audit computes, or what is done with it.
_NOT_IDENTITY = ("out", "resume", "restart", "sweep.side_by_side", "sweep.train_images", "sweep.train_steps")
_PLACES = ("agents.gpus", "agents.cpus", "agents.minimum", "agents.patience", "coordinator.save_every")
# Batch sizes at which a step is timed: the others lie on lines between.
_MOST_MEASURED = 3
# Of the budget; after that sizes that were not measured are estimated from those that were.
_MEASURING_SHARE = 0.15


class PlanStore:
    """The plan of an audit in its folder: one that goes on keeps its effort, or its cells could not be compared."""

    def __init__(self, storage: Storage, config: RunConfig) -> None:
        self._storage = storage
        known = settings(config).items()
        self._identity = {name: value for name, value in known if name not in _NOT_IDENTITY + _PLACES}

    def load(self) -> tuple[Plan, int] | None:
        """The plan and the threads of each agent; None where there is none for these settings."""
        try:
            facts = read_json(self._storage.read(_FILE, _LARGEST))
            if facts["identity"] != self._identity:
                return None
            plan = facts["plan"]
            plan |= {"kept": tuple(plan["kept"]), "notes": tuple(plan["notes"])}
            found = Plan(**plan), facts["threads"]
        except (StorageError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return found if misfit(found, tuple[Plan, int]) is None else None

    def save(self, plan: Plan, threads: int) -> None:
        """Keep it."""
        content = {"plan": asdict(plan), "threads": threads, "identity": self._identity}
        self._storage.write(_FILE, (json.dumps(content, indent=1) + "\n").encode())


def whole(grid: Grid, config: RunConfig) -> Plan:
    """The plan that runs everything as it was asked for."""
    names = tuple(cell.name for cell in grid.cells if cell.config is not None)
    return Plan(config.agents.iterations, config.agents.count, names, {})


def plan_for(
    grid: Grid,
    config: RunConfig,
    placing: Placing,
    available: Mapping[str, float],
    budget: float,
    trainings: int,
    say: Callable[[str], None],
) -> Plan:
    """Time short attacks at a few batch sizes, then fit the grid to the budget.

    Args:
        grid: All that was asked for.
        config: Of the audit.
        placing: Of each cell.
        available: What the cluster has.
        budget: Seconds that are left.
        trainings: Models that are trained for the cost of the defences.
        say: Told what is going on.
    """
    cells = [cell for cell in grid.cells if cell.config is not None]
    measured = _measure(cells, config, placing, budget, say)
    if not measured:
        return whole(grid, config)
    costs = {cell.name: interpolate(measured, _size(cell)) for cell in cells}
    steps = trainings * config.sweep.train_steps
    # A training step is about half of an attack's, which differentiates twice.
    extra = steps * min(cost.step for cost in measured.values()) / 2 / placing.at_once
    lanes = placing.lanes(config.agents.count, available)
    names = [cell.name for cell in cells]
    return fit(names, costs, config.agents.iterations, config.agents.count, placing.at_once, lanes, budget, extra)


def with_effort(cell: RunConfig, config: RunConfig, plan: Plan, placing: Placing, threads: int) -> RunConfig:
    """A cell's settings with the effort of the plan and the place of its agents."""
    agents = cell.agents
    if plan.iterations < config.agents.iterations:
        share = plan.iterations / config.agents.iterations
        agents = replace(agents, iterations=max(1, math.floor(share * agents.iterations)))
    count = min(agents.count, plan.agents) if plan.agents < config.agents.count else agents.count
    agents = replace(agents, count=count, minimum=min(agents.minimum, count), threads=agents.threads or threads)
    return replace(cell, agents=placing.apply(agents))


def _size(cell: Cell) -> int:
    assert cell.config is not None
    return cell.config.client.batch_size


def _measure(
    cells: Sequence[Cell], config: RunConfig, placing: Placing, budget: float, say: Callable[[str], None]
) -> dict[int, Cost]:
    """Costs by batch size, one measurement at a time: the user's own first, no more once they took their share.

    A size that fails is left to the others.
    """
    by_size = {_size(cell): cell for cell in reversed(cells)}
    sizes = sorted(by_size)
    own = _size(cells[0])
    others = [size for size in dict.fromkeys((sizes[-1], sizes[0], sizes[len(sizes) // 2])) if size != own]
    chosen = [own, *others[: _MOST_MEASURED - 1]]
    began = time.monotonic()

    def jobs() -> Iterator[Job]:
        for size in chosen:
            if time.monotonic() - began > _MEASURING_SHARE * budget:
                return
            cell = by_size[size].config
            assert cell is not None
            say(f"Measuring what a step takes at batch {size}")
            measured = with_effort(cell, config, _as_asked(config), placing, 0)
            yield Job(f"measure {size}", calibrate, (measured,), about=size)

    found: dict[int, Cost] = {}
    for end in run_side_by_side(jobs(), 1):
        if end.problem is None:
            found[end.about] = end.value
        else:
            say(f"{end.name} failed: {end.problem}")
    return found


def _as_asked(config: RunConfig) -> Plan:
    return Plan(config.agents.iterations, config.agents.count, (), {})

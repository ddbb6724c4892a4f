"""An audit from its settings to its page: plan, run the cells side by side, judge, write."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from rich.console import Console
from torch import nn

from ..capture import ModelError, load_model
from ..cluster import Ended, Job, available_resources, connected, run_side_by_side
from ..coordinator import Storage
from ..settings.folder import write_settings
from ..settings.run import RunConfig
from ..storage.lock import holding, require_free
from .accuracy import Accuracy, accuracy_identity, load_accuracy, not_finite, save_accuracy, train_and_test
from .budget import Plan, remaining_fits
from .cell import finished, forget, require_no_cells, run_cell
from .facts import AuditFacts
from .grid import CELLS, UNDEFENDED, Grid, make_grid
from .kinds import Kind
from .placing import Placing, place
from .planning import PlanStore, plan_for, whole, with_effort
from .report import write_audit
from .results import CellResult, State
from .verdict import GridVerdict
from .view import GridView


@dataclass(frozen=True)
class _Training:
    """What a job is about that trains with a defence; that of a cell is about nothing but its name."""

    defence: str


@dataclass
class _Audit:
    """An audit under way."""

    config: RunConfig
    grid: Grid
    storage: Storage
    view: GridView
    notes: list[str] = field(default_factory=list)
    results: dict[str, CellResult] = field(default_factory=dict)
    accuracies: dict[str, Accuracy] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    """Why the cost of a defence is not known."""
    diverged: set[str] = field(default_factory=set)
    """Defences with which training stayed finite at no learning rate."""
    configs: dict[str, RunConfig] = field(default_factory=dict)
    """With which each cell is run."""
    ratios: list[float] = field(default_factory=list)
    """How many times longer than estimated each cell took."""
    began: float = field(default_factory=lambda: time.monotonic())


def run_audit(config: RunConfig, console: Console) -> GridVerdict:
    """Run the grid of a configuration and write its page into ``out``.

    A cell that fails is told with its reason and stops no other. With ``resume`` the cells that are finished are kept,
    and the others go on after their last checkpoint. Interrupted, the page is written with the cells that are finished.

    Raises:
        ConfigError: The grid cannot be read, none of its cells can be run, or the folder holds an audit that only
            ``restart`` may clear.
        StorageError: ``out`` cannot be written, or another process on this machine runs in it.
    """
    config, notes = _without_idle_axis(_with_absolute_folder(config))
    grid = make_grid(config)
    storage = Storage(config.out)
    require_free(storage)
    if not (config.resume or config.restart):
        require_no_cells(storage)
    with holding(storage):
        return _run_in(storage, config, grid, notes, console)


def _run_in(storage: Storage, config: RunConfig, grid: Grid, notes: list[str], console: Console) -> GridVerdict:
    write_settings(storage, config)
    view = GridView(console, {cell.name: cell.title for cell in grid.cells})
    audit = _Audit(config, grid, storage, view, notes)
    for cell in grid.cells:
        if cell.config is None:
            audit.results[cell.name] = CellResult(State.FAILED, cell.problem)
        elif not config.resume:
            forget(cell.config)
    try:
        with view, connected(_store_bytes(grid)):
            _run(audit)
    except BaseException:
        # What has been found so far is not lost, whatever ended the audit.
        if any(result.state is State.DONE for result in audit.results.values()):
            _write(audit)
        raise
    return _write(audit)


def _run(audit: _Audit) -> None:
    config, grid = audit.config, audit.grid
    available = available_resources()
    count = max(cell.config.agents.count for cell in grid.cells if cell.config is not None)
    agents = replace(config.agents, count=count)
    placing = place(agents, config.sweep.side_by_side, len(grid.cells), available)
    plan, threads = _plan(audit, placing, available)
    audit.notes += plan.notes
    for cell in grid.cells:
        if cell.config is not None:
            audit.configs[cell.name] = with_effort(cell.config, config, plan, placing, threads)
    for name, result in list(audit.results.items()):
        audit.view.ended(name, result)
    _keep_finished(audit)
    _leave_out(audit, plan)
    for end in run_side_by_side(_jobs(audit, plan, placing.gpus), placing.at_once, audit.view.look):
        _take(audit, plan, end)


def _plan(audit: _Audit, placing: Placing, available: dict[str, float]) -> tuple[Plan, int]:
    """The plan and the threads of each agent: those of before where an audit goes on."""
    config = audit.config
    store = PlanStore(audit.storage, config)
    known = store.load() if config.resume else None
    if known is not None:
        return known
    plan, budget = whole(audit.grid, config), config.budget_seconds
    if budget is not None:
        trainings = 3 * len(_defences(audit)) if config.sweep.train_images is not None else 0
        left = budget - (time.monotonic() - audit.began)
        plan = plan_for(audit.grid, config, placing, available, left, trainings, audit.view.say)
    store.save(plan, placing.threads)
    return plan, placing.threads


def _keep_finished(audit: _Audit) -> None:
    if not audit.config.resume:
        return
    for name, config in audit.configs.items():
        found = finished(config)
        if found is not None:
            audit.results[name] = found
            audit.view.ended(name, found)


def _leave_out(audit: _Audit, plan: Plan) -> None:
    for name in audit.configs:
        if name not in plan.kept and name not in audit.results:
            _skip(audit, name, f"It does not fit budget={audit.config.budget}.")


def _skip(audit: _Audit, name: str, reason: str) -> None:
    audit.results[name] = CellResult(State.SKIPPED, reason)
    audit.view.ended(name, audit.results[name])


def _jobs(audit: _Audit, plan: Plan, gpus: float) -> Iterator[Job]:
    """Cells, the most informative first, then trainings; decided only when there is room for one."""
    for cell in audit.grid.cells:
        if cell.name in audit.results or cell.name not in audit.configs:
            continue
        if not _in_time(audit, plan, cell.name):
            _skip(audit, cell.name, f"The time of budget={audit.config.budget} was used up.")
            continue
        yield Job(cell.name, run_cell, (audit.configs[cell.name],))
    folder, steps = audit.config.sweep.train_images, audit.config.sweep.train_steps
    if folder is None:
        return
    for name, config in _defences(audit).items():
        found = load_accuracy(audit.storage, name, accuracy_identity(config, folder, steps))
        if found is not None and audit.config.resume:
            audit.accuracies[name] = found
        elif _over_time(audit):
            audit.problems[name] = f"The time of budget={audit.config.budget} was used up."
        else:
            arguments = (config, folder, steps)
            yield Job(f"accuracy of {name}", train_and_test, arguments, about=_Training(name))


def _in_time(audit: _Audit, plan: Plan, name: str) -> bool:
    budget = audit.config.budget_seconds
    # Whatever the time: without one cell there is nothing to say.
    if budget is None or name not in plan.seconds or not any(r.state is State.DONE for r in audit.results.values()):
        return True
    ratio = sum(audit.ratios) / len(audit.ratios) if audit.ratios else 1.0
    return remaining_fits(plan, name, time.monotonic() - audit.began, ratio, budget)


def _over_time(audit: _Audit) -> bool:
    budget = audit.config.budget_seconds
    return budget is not None and time.monotonic() - audit.began > budget


def _defences(audit: _Audit) -> dict[str, RunConfig]:
    """The settings of each defence at the base of the grid, by its name; always with those of no defence."""
    grid = audit.grid
    position = next(i for i, axis in enumerate(grid.axes) if axis.kind is Kind.DEFENCE)
    at_base = {
        cell.levels[position]: cell
        for cell in grid.cells
        if all(
            level == base for i, (level, base) in enumerate(zip(cell.levels, grid.base, strict=True)) if i != position
        )
    }
    levels = grid.axes[position].levels
    found = {}
    for level, cell in at_base.items():
        if cell.config is not None:
            found[levels[level].name] = cell.config
    if found and UNDEFENDED not in found:
        one = next(iter(found.values()))
        found[UNDEFENDED] = replace(one, client=replace(one.client, defence="none", defence_strength=0.0))
    return found


def _take(audit: _Audit, plan: Plan, end: Ended) -> None:
    if isinstance(end.about, _Training):
        _take_accuracy(audit, end, end.about.defence)
        return
    folder = f"{CELLS}/{end.name}"
    result: CellResult = end.value if end.problem is None else CellResult(State.FAILED, end.problem)
    if end.details:
        audit.storage.write(f"{folder}/error.txt", end.details.encode())
    if result.state is State.DONE and plan.seconds.get(end.name):
        audit.ratios.append(result.seconds / plan.seconds[end.name])
    audit.results[end.name] = result
    audit.view.ended(end.name, result)


def _take_accuracy(audit: _Audit, end: Ended, name: str) -> None:
    if end.problem is not None:
        audit.problems[name] = end.problem
        return
    if end.value is None:
        audit.problems[name] = not_finite()
        audit.diverged.add(name)
        return
    audit.accuracies[name] = end.value
    folder, steps = audit.config.sweep.train_images, audit.config.sweep.train_steps
    assert folder is not None
    save_accuracy(audit.storage, name, accuracy_identity(_defences(audit)[name], folder, steps), end.value)
    audit.view.say(f"{end.name}: {end.value.mean:.1%}")


def _write(audit: _Audit) -> GridVerdict:
    facts = AuditFacts(
        config=audit.config,
        grid=audit.grid,
        results={
            cell.name: audit.results.get(cell.name, CellResult(State.WAITING, "The audit was interrupted before it."))
            for cell in audit.grid.cells
        },
        configs=audit.configs,
        accuracies=audit.accuracies,
        accuracy_problems=audit.problems,
        diverged=frozenset(audit.diverged),
        notes=tuple(audit.notes),
        seconds=time.monotonic() - audit.began,
    )
    return write_audit(facts)


def _with_absolute_folder(config: RunConfig) -> RunConfig:
    folder = config.sweep.train_images
    if folder is None:
        return config
    return replace(config, sweep=replace(config.sweep, train_images=os.path.abspath(os.path.expanduser(folder))))


def _without_idle_axis(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """A model without batch norm is the same in all of its modes."""
    client = config.client
    if len(config.sweep.bn) < 2:
        return config, []
    try:
        model = load_model(client.model, client.classes, client.image_shape, None, config.seed)
    except ModelError:
        return config, []  # each cell will say so
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
        return config, []
    note = f"{client.model} has no batch norm: its modes are one and the same, and {client.bn} stands for all."
    return replace(config, sweep=replace(config.sweep, bn=(client.bn,))), [note]


def _store_bytes(grid: Grid) -> int:
    """For the object store of a Ray of our own, by the largest cell."""
    needs = [0]
    for cell in grid.cells:
        if cell.config is not None:
            client, count = cell.config.client, cell.config.agents.count
            needs.append(4 * client.batch_size * math.prod(client.image_shape) * (2 * count + 8))
    return max(needs)

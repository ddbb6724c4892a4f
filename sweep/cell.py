"""One cell: simulate the client, attack its update, run the controls, judge; all of it in the cell's folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

from torch import nn

from ..audit import (
    AuditReport,
    Control,
    Leak,
    Pool,
    judge,
    load_pool,
    run_controls,
    write_report,
)
from ..audit.assumptions import GIVEN_LABELS
from ..audit.controls import TITLES, simulated
from ..audit.results import compared
from ..capture import CapturedUpdate, ImageError, PrivateBatch, simulate_client
from ..cluster import reconstruct
from ..coordinator import AttackConfig, Reconstruction, Status, Storage
from ..settings.run import ConfigError, RunConfig, config_yaml, differences, parse_config, to_plain
from .results import CellResult, State, forget_result, load_result, save_result
from .worst import find_risk, find_worst, finite, strongest

_CONFIG = "config.yaml"
_CONTROLS = "controls"
_LARGEST_CONFIG = 2**20


@dataclass(frozen=True)
class Progress:
    """What a running cell is at."""

    phase: str
    step: int = 0
    steps: int = 0
    gradient_loss: float | None = None
    began: float = 0.0
    """Unix time."""


Tell = Callable[[Progress], None]


def finished(config: RunConfig) -> CellResult | None:
    """The result that lies in a cell's folder, if it is one of these settings."""
    storage = Storage(config.out)
    return load_result(storage) if _holds(storage, config, threads=False) else None


def forget(config: RunConfig) -> None:
    """Have a cell begin anew, whatever lies in its folder."""
    storage = Storage(config.out)
    forget_result(storage)
    storage.remove(_CONFIG)


def run_cell(config: RunConfig, tell: Tell) -> CellResult:
    """Run one cell, or go on with it where its folder holds a part of it; its result is written there.

    Raises:
        ValueError, RuntimeError: What cannot be carried out, in one sentence.
    """
    began = time.time()
    report = _Reporter(tell, began)
    storage = Storage(config.out)
    resume = _holds(storage, config, threads=True)
    forget_result(storage)
    if not resume:
        storage.write(_CONFIG, config_yaml(config).encode())
        storage.remove(_CONTROLS)
    report.phase("client")
    update, model, private = simulate_client(config.client, config.seed)
    report.phase("attack")
    found = reconstruct(update, model, config, out=config.out, resume=resume, watch=report.watch, detach=False)
    # The report tells the whole run, the client's settings too.
    found = replace(found, config=to_plain(config))
    pool, problems = _load_pool(config, private)
    controls = _run_controls(config, update, model, private, pool, resume, report)
    problems += [f"Control “{TITLES[control.name]}”: {control.problem}" for control in controls if control.problem]
    report.phase("judging")
    audit = judge(
        found, update, model, private, client=config.client, settings=config.audit, controls=controls, pool=pool
    )
    write_report(audit, found, private, config.out, controls)
    result = _summarise(audit, found, controls, private, tuple(problems), time.time() - began)
    storage.remove(_CONTROLS)
    save_result(storage, result)
    return result


def _load_pool(config: RunConfig, private: PrivateBatch) -> tuple[Pool | None, list[str]]:
    """Other images, and why there are none: the cell goes on without."""
    if config.audit.pool is None:
        return None, []
    try:
        return load_pool(config.audit.pool, private), []
    except ImageError as error:
        return None, [str(error)]


def _run_controls(
    config: RunConfig,
    update: CapturedUpdate,
    model: nn.Module,
    private: PrivateBatch,
    pool: Pool | None,
    resume: bool,
    report: _Reporter,
) -> tuple[Control, ...]:
    storage, current = Storage(config.out), ""

    def announce(name: str) -> None:
        nonlocal current
        current = name
        report.phase(f"control: {TITLES[name]}")

    def attack(other: CapturedUpdate, settings: AttackConfig) -> Reconstruction:
        out = storage.locate(f"{_CONTROLS}/{current}")
        return reconstruct(other, model, settings, out=out, resume=resume, watch=report.watch, detach=False)

    return run_controls(
        config.audit.controls,
        update,
        config,
        attack,
        private=private,
        send=simulated(config.client, config.seed),
        pool=pool,
        announce=announce,
    )


class _Reporter:
    """Tells where the cell is, and how far the attack in it."""

    def __init__(self, tell: Tell, began: float) -> None:
        self._tell, self._began, self._phase = tell, began, ""

    def phase(self, name: str) -> None:
        self._phase = name
        self._tell(Progress(name, began=self._began))

    def watch(self, status: Status) -> None:
        losses = [seed.losses["gradient"] for seed in status.seeds if "gradient" in seed.losses]
        step = min((seed.step for seed in status.seeds), default=0)
        self._tell(Progress(self._phase, step, status.iterations, min(losses, default=None), self._began))


def _summarise(
    audit: AuditReport,
    found: Reconstruction,
    controls: tuple[Control, ...],
    private: PrivateBatch,
    problems: tuple[str, ...],
    seconds: float,
) -> CellResult:
    if audit.verdict.leak is Leak.FAILED:
        return CellResult(State.FAILED, f"{audit.verdict.headline}. {audit.verdict.detail}", seconds=seconds)
    leaks = [image.verdict.leak for image in audit.images]
    # The mean of the strongest controls is over the images that the other means are over.
    best = [value for _, value in map(strongest, compared(audit.images)) if value is not None]
    # Labels that the attack was given say nothing about what leaks.
    read = found.labels.method != GIVEN_LABELS
    return CellResult(
        State.DONE,
        f"{audit.verdict.headline}. {audit.verdict.detail}",
        images=len(leaks),
        leaked=leaks.count(Leak.LEAKED),
        weak=leaks.count(Leak.WEAK),
        unknown=leaks.count(Leak.UNKNOWN) + leaks.count(Leak.FAILED),
        iip=finite(audit.iip),
        labels=audit.label_accuracy if read else None,
        label_scores=audit.label_scores if read else None,
        psnr=finite(audit.psnr_mean),
        floor=finite(audit.constant_image_psnr),
        control=fmean(best) if best else None,
        ssim=finite(audit.ssim_mean),
        seconds=seconds,
        agents=len(found.candidates),
        iterations=found.iterations,
        problems=problems,
        worst=find_worst(audit, found, controls, private),
        risks=tuple(find_risk(image) for image in audit.images),
        embedding=audit.embedding,
        versions=audit.provenance,
    )


def _holds(storage: Storage, config: RunConfig, *, threads: bool) -> bool:
    """Whether a cell's folder was begun with these settings.

    Args:
        threads: Also with as many threads: numbers are bit-equal only then, and checkpoints are continued only then.
    """
    if not storage.exists(_CONFIG):
        return False
    try:
        before = parse_config(storage.read(_CONFIG, _LARGEST_CONFIG), storage.locate(_CONFIG))
    except ConfigError:
        return False
    if not threads:
        before = replace(before, agents=replace(before.agents, threads=config.agents.threads))
    # The controls decide the verdict, though not the numbers of the attack.
    return before.audit == config.audit and not differences(before, config)

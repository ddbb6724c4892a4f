"""One cell: simulate the client, attack its update, run the controls, judge; all of it in the cell's folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

from ..audit import Leak
from ..audit.assumptions import GIVEN_LABELS
from ..audit.case import Case
from ..audit.controls import TITLES
from ..audit.image_result import compared
from ..audit.peeling_facts import peeling_summary
from ..audit.pipeline import Assessment, Stage, attack_and_assess
from ..capture import CapturedUpdate
from ..cluster import reconstruct
from ..coordinator import AttackConfig, Reconstruction, Status, Storage
from ..refusal import ConfigError
from ..settings.case import obtain
from ..settings.folder import read_settings, remove_settings, write_settings
from ..settings.run import RunConfig, differences
from .grid import CELLS
from .results import CellResult, State, forget_result, load_result, save_result
from .worst import find_risk, find_worst, finite, strongest

_CONTROLS = "controls"


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
    remove_settings(storage)


def require_no_cells(storage: Storage) -> None:
    """Refuse a folder with cells of an audit, which took work.

    Raises:
        ConfigError: There are some; the sentence tells the ways on.
        StorageError: It cannot be listed now.
    """
    if storage.names(CELLS):
        raise ConfigError(
            [
                f"{storage.url} holds the cells of an audit: resume=true goes on with it, restart=true deletes them "
                "and begins anew; or give another out folder."
            ]
        )


def run_cell(config: RunConfig, tell: Tell) -> CellResult:
    """Run one cell, or go on with it where its folder holds a part of it; its result is written there.

    Raises:
        ValueError, RuntimeError: What cannot be carried out, in one sentence.
    """
    began = time.time()
    storage = Storage(config.out)
    resume = _holds(storage, config, threads=True)
    forget_result(storage)
    if not resume:
        write_settings(storage, config)
        storage.remove(_CONTROLS)
    tell(Progress("client", began=began))
    case = obtain(config)
    found = attack_and_assess(case, _Runner(case, storage, resume, tell, began), config.out)
    result = _summarise(found, time.time() - began)
    storage.remove(_CONTROLS)
    save_result(storage, result)
    return result


class _Runner:
    """Attacks in the cell's folder, so that one that was begun goes on; tells where the cell is, and how far it is."""

    def __init__(self, case: Case, storage: Storage, resume: bool, tell: Tell, began: float) -> None:
        self._case, self._storage, self._resume = case, storage, resume
        self._tell, self._began, self._phase = tell, began, ""

    def attack(self, update: CapturedUpdate, config: AttackConfig, control: str | None) -> Reconstruction:
        """See `Runner`."""
        out = self._storage.locate("" if control is None else f"{_CONTROLS}/{control}")
        model, resume, watch = self._case.model, self._resume, self._watch
        # What lies there and is not gone on with was given up when the audit began.
        given_up = not resume
        return reconstruct(update, model, config, out=out, resume=resume, restart=given_up, watch=watch, detach=False)

    def begins(self, stage: Stage, control: str | None = None) -> None:
        """See `Runner`."""
        self._phase = stage.value if control is None else f"{stage.value}: {TITLES[control]}"
        self._tell(Progress(self._phase, began=self._began))

    def _watch(self, status: Status) -> None:
        losses = [seed.losses["gradient"] for seed in status.seeds if "gradient" in seed.losses]
        step = min((seed.step for seed in status.seeds), default=0)
        self._tell(Progress(self._phase, step, status.iterations, min(losses, default=None), self._began))


def _summarise(assessment: Assessment, seconds: float) -> CellResult:
    report, found = assessment.report, assessment.reconstruction
    private = assessment.case.private
    assert private is not None
    if report.verdict.leak is Leak.FAILED:
        return CellResult(State.FAILED, f"{report.verdict.headline}. {report.verdict.detail}", seconds=seconds)
    leaks = [image.verdict.leak for image in report.images]
    # The mean of the strongest controls is over the images that the other means are over.
    best = [value for _, value in map(strongest, compared(report.images)) if value is not None]
    # Labels that the attack was given say nothing about what leaks.
    read = found.labels.method != GIVEN_LABELS
    return CellResult(
        State.DONE,
        f"{report.verdict.headline}. {report.verdict.detail}",
        images=len(leaks),
        leaked=leaks.count(Leak.LEAKED),
        weak=leaks.count(Leak.WEAK),
        unknown=leaks.count(Leak.UNKNOWN) + leaks.count(Leak.FAILED),
        iip=finite(report.iip),
        labels=report.label_accuracy if read else None,
        label_scores=report.label_scores if read else None,
        psnr=finite(report.psnr_mean),
        floor=finite(report.constant_image_psnr),
        control=fmean(best) if best else None,
        ssim=finite(report.ssim_mean),
        bit_exact=report.bit_exact,
        peeling=peeling_summary(found),
        exact_places=None if found.peeling is None else found.peeling.exact_places,
        seconds=seconds,
        agents=len(found.candidates),
        iterations=found.iterations,
        problems=_problems(assessment),
        worst=find_worst(report, found, assessment.controls, private),
        risks=tuple(find_risk(image) for image in report.images),
        embedding=report.embedding,
        versions=report.provenance,
    )


def _problems(assessment: Assessment) -> tuple[str, ...]:
    """What the cell went on without."""
    pool = assessment.case.pool_problem
    failed = [control for control in assessment.controls if control.problem]
    return (
        *([pool] if pool else []),
        *(f"Control “{TITLES[control.name]}”: {control.problem}" for control in failed),
    )


def _holds(storage: Storage, config: RunConfig, *, threads: bool) -> bool:
    """Whether a cell's folder was begun with these settings.

    Args:
        threads: Also with as many threads: numbers are bit-equal only then, and checkpoints are continued only then.
    """
    try:
        before = read_settings(storage)
    except ConfigError:
        return False
    if before is None:
        return False
    if not threads:
        before = replace(before, agents=replace(before.agents, threads=config.agents.threads))
    # The controls decide the verdict, though not the numbers of the attack.
    return before.audit == config.audit and not differences(before, config)

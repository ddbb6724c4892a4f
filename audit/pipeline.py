"""From a case to its report, the same for a single run and for a cell of a grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from ..capture import CapturedUpdate
from ..coordinator import AttackConfig, Reconstruction
from .case import Case
from .controls import Control, run_controls
from .judging import judge
from .report import write_report
from .results import AuditReport


class Stage(StrEnum):
    """What a case is at."""

    ATTACK = "attack"
    CONTROL = "control"
    JUDGING = "judging"


class Runner(Protocol):
    """Carries out the attacks of a case, on Ray or without, and shows a person what the case is at."""

    def attack(self, update: CapturedUpdate, config: AttackConfig, control: str | None) -> Reconstruction:
        """Attack an update on the model of the case.

        Args:
            update: of the case, or of a control.
            config: with which effort, and by which terms.
            control: which one of ``CONTROLS`` this attack is; None for that of the case itself.
        """

    def begins(self, stage: Stage, control: str | None = None) -> None:
        """Told before each stage; before a control with its name."""


@dataclass(frozen=True)
class Assessment:
    """What a case came to."""

    case: Case
    reconstruction: Reconstruction
    controls: tuple[Control, ...]
    report: AuditReport


def attack_and_assess(case: Case, runner: Runner, out: str | Path) -> Assessment:
    """Attack the update of a case, then `assess` what came of it.

    Raises:
        RuntimeError, ValueError: The attack cannot be carried out, in one sentence; see also `assess`.
    """
    runner.begins(Stage.ATTACK)
    return assess(case, runner.attack(case.update, case.attack, None), runner, out)


def assess(case: Case, reconstruction: Reconstruction, runner: Runner, out: str | Path) -> Assessment:
    """Hold the result of an attack against its controls and the truth, and write the report.

    Args:
        case: that was attacked.
        reconstruction: of the attack.
        runner: carries out the controls.
        out: folder or URL for the report.

    Raises:
        ReportError: The report cannot be written.
        LpipsError, ValueError: The images cannot be compared, see `evaluate`.
    """
    # The report tells the whole run, the client's settings too; of a case made by hand, those of the attack.
    reconstruction = replace(reconstruction, config=dict(case.settings) or reconstruction.config)
    controls = run_controls(
        case,
        lambda control, update, config: runner.attack(update, config, control),
        lambda control: runner.begins(Stage.CONTROL, control),
    )
    runner.begins(Stage.JUDGING)
    report = judge(reconstruction, case, controls)
    write_report(report, reconstruction, case.private, out, controls, again=case.command, redact=case.audit.redact)
    return Assessment(case, reconstruction, controls, report)

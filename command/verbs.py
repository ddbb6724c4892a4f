"""The verbs: one function for each, from settings to a report."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from ..audit import ReportError, without_gradient
from ..audit.case import Case
from ..audit.controls import MEANINGS
from ..audit.pipeline import Assessment, Stage, assess
from ..audit.verdict import Leak
from ..capture import CapturedUpdate, ModelSource, simulate_client
from ..cluster import Activity, ProgressView, attend, reconstruct, require_no_run, stop
from ..coordinator import AttackConfig, Reconstruction, Storage, read_result
from ..exporting import export, require_packages
from ..foreign_text import safe_lines
from ..refusal import ConfigError
from ..settings.case import obtain
from ..settings.folder import check_folder, open_folder, settings_of_the_run
from ..settings.run import RunConfig
from ..storage.lock import holding
from ..sweep.audit import run_audit
from .rescue import kept_whatever_comes

# What a command is at between its attacks.
_OBTAINS = "reading or making the update"
_STAGES = {
    Stage.ATTACK: "beginning the attack",
    Stage.CONTROL: "preparing a control",
    Stage.JUDGING: "judging the images and writing the report",
}


def attack(config: RunConfig, console: Console) -> int:
    """Reconstruct the batch behind an update and write the report."""
    if not config.resume:
        # Its settings are in the folder: they must still be there for whoever watches it.
        require_no_run(config.out)
    if "no_gradient" in config.audit.controls:
        without_gradient(config)  # what is refused is refused before hours of work
    storage = check_folder(config)
    require_packages(config.export, storage)
    with holding(storage), _active(console) as activity:
        activity.begins(_OBTAINS)
        case = obtain(config)
        case.require_comparisons()
        # Now that all else is right: what a refused command overwrites could not be gone on with.
        open_folder(config)
        if case.evidence:
            _say(console, case.evidence)
        runner = _Runner(case, config, console, activity)
        found = runner.attack(case.update, case.attack, None)
        with kept_whatever_comes(found, config, console):
            return _report(assess(case, found, runner, config.out), config, console)


def audit(config: RunConfig, console: Console) -> int:
    """Attack a grid of settings side by side, and write the page that says which change stops the leak."""
    if curves := [name for name in config.export if name != "csv"]:
        raise ConfigError(
            [
                f"export={','.join(curves)}: an audit has no loss curves of its own; give export=csv, and afterwards "
                "`export` for a folder in cells/."
            ]
        )
    verdict = run_audit(config, console)
    _say(console, f"\n{verdict.headline}. {verdict.advice}")
    _say(console, f"Report: {Storage(config.out).locate('audit.html')}")
    _export(config, config.export, console)
    return exit_status(Leak.UNKNOWN if verdict.leaks is None else Leak.LEAKED if verdict.leaks else Leak.NONE, config)


def watch(config: RunConfig, console: Console) -> int:
    """Look on at a run that goes on without us, and write the report when it ends."""
    config = settings_of_the_run(config)
    with ProgressView(console) as view:
        found = attend(config.out, watch=view)
    with _active(console) as activity, kept_whatever_comes(found, config, console):
        return _assess(found, config, console, activity)


def report(config: RunConfig, console: Console) -> int:
    """Write the report of a run that has ended, again."""
    config = settings_of_the_run(config)
    found = read_result(Storage(config.out))
    if found is None:
        raise ReportError(f"out={config.out} holds no result yet: `watch` waits for the end of a run.")
    with _active(console) as activity:
        return _assess(found, config, console, activity)


def end(config: RunConfig, console: Console) -> int:
    """Have a run end at its next round."""
    stop(config.out)
    console.print("The run ends with its current round; `report` or `watch` writes what it has found.")
    return 0


def export_numbers(config: RunConfig, console: Console) -> int:
    """Write the numbers of a run that has ended in other forms; no code that the run names is loaded."""
    _export(config, config.export or ("csv",), console)
    return 0


def capture(config: RunConfig, console: Console) -> int:
    """Simulate the client and save what it sends, without attacking it."""
    storage = check_folder(config)
    if not storage.is_local:
        raise ReportError(f"out={config.out}: an update is captured into a folder of this machine; give one.")
    with holding(storage), _active(console) as activity:
        activity.begins(_OBTAINS)
        update, _, _ = simulate_client(config.client, config.seed)
        open_folder(config)
        path = storage.path / "update.safetensors"
        update.save(path)
    _say(console, f"Captured update: {path}")
    return 0


@dataclass(frozen=True)
class _Runner:
    """Attacks on Ray, shown on the console; that of the case itself in the folder of the run."""

    case: Case
    config: RunConfig
    console: Console
    activity: Activity

    def attack(self, update: CapturedUpdate, config: AttackConfig, control: str | None) -> Reconstruction:
        model = self.case.model
        self.activity.begins("")  # the view tells how it goes
        with ProgressView(self.console) as view:
            if control is not None:
                return reconstruct(update, model, config, watch=view)
            out, resume = self.config.out, self.config.resume
            client = self.case.client
            source = ModelSource(client.model, client.classes, update.image_shape, self.config.seed)
            restart = self.config.restart
            return reconstruct(
                update, model, config, out=out, resume=resume, restart=restart, watch=view, source=source
            )

    def begins(self, stage: Stage, control: str | None = None) -> None:
        self.activity.begins(_STAGES[stage])
        if control is not None:
            self.console.print(f"Control: {MEANINGS[control]}", markup=False, highlight=False)


def _assess(found: Reconstruction, config: RunConfig, console: Console, activity: Activity) -> int:
    activity.begins(_OBTAINS)
    case = obtain(config)
    case.require_comparisons()
    return _report(assess(case, found, _Runner(case, config, console, activity), config.out), config, console)


def _report(found: Assessment, config: RunConfig, console: Console) -> int:
    verdict = found.report.verdict
    _say(console, f"\n{verdict.headline}. {verdict.detail}")
    _say(console, f"Report: {Storage(config.out).locate('report.html')}")
    _export(config, config.export, console)
    return exit_status(verdict.leak, config)


def _export(config: RunConfig, formats: tuple[str, ...], console: Console) -> None:
    if formats:
        written = export(Storage(config.out), formats)
        _say(console, f"Exported: {', '.join(Storage(config.out).locate(name) for name in written)}")


def exit_status(leak: Leak, config: RunConfig) -> int:
    """0, or 4 where the verdict is one that the command is to fail on."""
    grave = {
        "never": frozenset[Leak](),
        "leak": frozenset({Leak.LEAKED}),
        "weak": frozenset({Leak.LEAKED, Leak.WEAK}),
        "unknown": frozenset(Leak) - {Leak.NONE},
    }
    return 4 if leak in grave[config.fail_on] else 0


def _active(console: Console) -> Activity:
    return Activity(lambda line: _say(console, line))


def _say(console: Console, text: str) -> None:
    console.print(safe_lines(text), markup=False, highlight=False, soft_wrap=True)


VERBS = {
    "attack": attack,
    "audit": audit,
    "capture": capture,
    "watch": watch,
    "stop": end,
    "report": report,
    "export": export_numbers,
}

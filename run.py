"""From settings to a report: config -> capture -> reconstruct -> evaluate -> report."""

from __future__ import annotations

import sys
from dataclasses import replace

from gradinversion.audit import (
    Control,
    ControlError,
    LpipsError,
    Pool,
    ReportError,
    embedding_for,
    judge,
    load_pool,
    run_controls,
    without_gradient,
    write_report,
)
from gradinversion.audit.controls import MEANINGS
from gradinversion.audit.pool import draw_batch
from gradinversion.capture import (
    CapturedUpdate,
    ClientError,
    DefenceError,
    ImageError,
    LabelError,
    ModelError,
    ModelSource,
    PrivateBatch,
    PrivateConfig,
    UpdateError,
    simulate_client,
)
from gradinversion.capture.told_config import ToldConfig
from gradinversion.cluster import ClusterError, DetachedError, ProgressView, attend, reconstruct, require_no_run, stop
from gradinversion.coordinator import (
    AllSeedsFailedError,
    AttackConfig,
    CheckpointError,
    Reconstruction,
    Storage,
    StorageError,
    read_result,
)
from gradinversion.registration import RegistrationError
from gradinversion.settings.help import help_text
from gradinversion.settings.run import (
    ConfigError,
    RunConfig,
    config_yaml,
    differences,
    load_config,
    parse_config,
    to_plain,
)
from gradinversion.subject import Subject, obtain
from gradinversion.sweep.audit import run_audit
from rich.console import Console

_CONFIG_FILE = "config.yaml"
_LARGEST_CONFIG = 2**20
_REFUSALS = (
    AllSeedsFailedError,
    CheckpointError,
    ClientError,
    ClusterError,
    ConfigError,
    ControlError,
    DefenceError,
    ImageError,
    LabelError,
    LpipsError,
    ModelError,
    RegistrationError,
    ReportError,
    StorageError,
    UpdateError,
)


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit status: 0 done, 2 refused with a sentence, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    console, errors = Console(), Console(stderr=True)
    if {"--help", "-h", "help"} & set(words):
        console.print(help_text(), markup=False, highlight=False, soft_wrap=True)
        return 0
    verb = words.pop(0) if words and "=" not in words[0] else "attack"
    try:
        if verb not in VERBS:
            raise ConfigError([f"{verb!r} is not a verb; give {', '.join(VERBS)}, or --help."])
        return VERBS[verb](load_config(words), console)
    except _REFUSALS as error:
        errors.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except DetachedError:
        errors.print(_left_behind(words), markup=False, highlight=False, soft_wrap=True)
        return 130
    except KeyboardInterrupt:
        errors.print(_interrupted(verb, words), markup=False, highlight=False, soft_wrap=True)
        return 130


def attack(config: RunConfig, console: Console) -> int:
    """Reconstruct the batch behind an update and write the report."""
    if not config.resume:
        # Its settings are in the folder: they must still be there for whoever watches it.
        require_no_run(config.out)
    if "no_gradient" in config.audit.controls:
        without_gradient(config)  # what is refused is refused before hours of work
    _open_folder(config)
    subject = obtain(config)
    config, update, model = subject.config, subject.update, subject.model
    # What the audit needs is refused before the attack, not after it.
    other_images(config, subject.private)
    embedding_for(config.audit, update, model)
    if subject.evidence:
        _say(console, subject.evidence)
    source = ModelSource(config.client.model, config.client.classes, update.image_shape, config.seed)
    with ProgressView(console) as view:
        found = reconstruct(update, model, config, out=config.out, resume=config.resume, watch=view, source=source)
    return conclude(found, subject, console)


def audit(config: RunConfig, console: Console) -> int:
    """Attack a grid of settings side by side, and write the page that says which change stops the leak."""
    verdict = run_audit(config, console)
    _say(console, f"\n{verdict.headline}. {verdict.advice}")
    _say(console, f"Report: {Storage(config.out).locate('audit.html')}")
    return 0


def watch(config: RunConfig, console: Console) -> int:
    """Look on at a run that goes on without us, and write the report when it ends."""
    config = _config_of_the_run(config)
    with ProgressView(console) as view:
        found = attend(config.out, watch=view)
    return conclude(found, obtain(config), console)


def report(config: RunConfig, console: Console) -> int:
    """Write the report of a run that has ended, again."""
    config = _config_of_the_run(config)
    found = read_result(Storage(config.out))
    if found is None:
        raise ReportError(f"out={config.out} holds no result yet: `watch` waits for the end of a run.")
    return conclude(found, obtain(config), console)


def end(config: RunConfig, console: Console) -> int:
    """Have a run end at its next round."""
    stop(config.out)
    console.print("The run ends with its current round; `report` or `watch` writes what it has found.")
    return 0


def conclude(reconstruction: Reconstruction, subject: Subject, console: Console) -> int:
    """Compare what was recovered with the controls and the truth, and write the report."""
    config, private = subject.config, subject.private
    # The report tells the whole run, the client's settings too.
    reconstruction = replace(reconstruction, config=to_plain(config))
    pool = other_images(config, private)
    controls = _controls(subject, pool, console)
    found = judge(
        reconstruction,
        subject.update,
        subject.model,
        private,
        client=config.client,
        settings=config.audit,
        controls=controls,
        pool=pool,
    )
    write_report(found, reconstruction, private, config.out, controls)
    _say(console, f"\n{found.verdict.headline}. {found.verdict.detail}")
    _say(console, f"Report: {Storage(config.out).locate('report.html')}")
    return 0


def other_images(config: RunConfig, private: PrivateBatch | None) -> Pool | None:
    """The pool of the audit, or None where none is wanted or nothing can be compared with it."""
    if config.audit.pool is None or private is None:
        return None
    pool = load_pool(config.audit.pool, private)
    if "other_images" in config.audit.controls:
        draw_batch(pool, private)
    return pool


def _controls(subject: Subject, pool: Pool | None, console: Console) -> tuple[Control, ...]:
    if subject.private is None:
        return ()

    def attack_alike(update: CapturedUpdate, settings: AttackConfig) -> Reconstruction:
        with ProgressView(console) as view:
            return reconstruct(update, subject.model, settings, watch=view)

    return run_controls(
        subject.config.audit.controls,
        subject.update,
        subject.config,
        attack_alike,
        private=subject.private,
        send=subject.send,
        pool=pool,
        announce=lambda name: console.print(f"Control: {MEANINGS[name]}", markup=False, highlight=False),
    )


def capture(config: RunConfig, console: Console) -> int:
    """Simulate the client and save what it sends, without attacking it."""
    storage = _open_folder(config)
    if not storage.is_local:
        raise ReportError(f"out={config.out}: an update is captured into a folder of this machine; give one.")
    update, _, _ = simulate_client(config.client, config.seed)
    path = storage.path / "update.safetensors"
    update.save(path)
    _say(console, f"Captured update: {path}")
    return 0


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _open_folder(config: RunConfig) -> Storage:
    storage = Storage(config.out)
    if config.resume and storage.exists(_CONFIG_FILE):
        _require_same_run(config, storage)
    try:
        storage.write(_CONFIG_FILE, config_yaml(config).encode())
    except StorageError as error:
        raise ReportError(f"out={config.out} cannot be written ({error}); give a folder that can.") from None
    return storage


def _config_of_the_run(config: RunConfig) -> RunConfig:
    """The settings that the run in this folder was begun with; the words only said where it is."""
    storage = Storage(config.out)
    if not storage.exists(_CONFIG_FILE):
        raise ReportError(f"out={config.out} holds no run: there is no {_CONFIG_FILE} in it.")
    stored = _read_config(storage)
    if config.told != ToldConfig() and config.told != stored.told:
        named = ", ".join(f"told.{name}" for name in config.told.given)
        raise ConfigError([f"{named}: the run in out={config.out} was made without it; run the attack again with it."])
    private = config.private if config.private != PrivateConfig() else stored.private
    return replace(stored, out=config.out, private=private)


def _read_config(storage: Storage) -> RunConfig:
    where = storage.locate(_CONFIG_FILE)
    return parse_config(storage.read(_CONFIG_FILE, _LARGEST_CONFIG), where)


def _require_same_run(config: RunConfig, storage: Storage) -> None:
    """Before anything in the folder is written, so that the other run can still be resumed."""
    found = differences(_read_config(storage), config)
    if found:
        listed = "".join(f"\n  - {line}" for line in found)
        raise ConfigError([f"{storage.url} holds a run with other settings; give those, or another out:{listed}"])


def _left_behind(words: list[str]) -> str:
    out = next((word for word in reversed(words) if word.startswith("out=")), "out=out")
    return (
        "The run goes on without this view.\n"
        f"  look on again:  python run.py watch {out}\n"
        f"  end it:         python run.py stop {out}"
    )


def _interrupted(verb: str, words: list[str]) -> str:
    again = " ".join(
        ["python run.py", verb, *(word for word in words if not word.startswith("resume=")), "resume=true"]
    )
    return f"Interrupted. The rounds finished so far are saved; this continues after the last one:\n  {again}"


VERBS = {"attack": attack, "audit": audit, "capture": capture, "watch": watch, "stop": end, "report": report}


if __name__ == "__main__":
    sys.exit(main())

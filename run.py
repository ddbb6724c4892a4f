"""From settings to a report: config -> capture -> reconstruct -> evaluate -> report."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from gradinversion.audit import ReportError, evaluate, write_report
from gradinversion.capture import (
    CapturedUpdate,
    ClientError,
    ImageError,
    LabelError,
    ModelError,
    PrivateBatch,
    UpdateError,
    load_model,
    simulate_client,
)
from gradinversion.cluster import ClusterError, ProgressView, reconstruct
from gradinversion.config import (
    ConfigError,
    RunConfig,
    config_yaml,
    differences,
    load_config,
    load_config_file,
    to_plain,
)
from gradinversion.config_help import help_text
from gradinversion.coordinator import AllSeedsFailedError, CheckpointError
from rich.console import Console
from torch import nn

VERBS = ("attack", "capture")
_REFUSALS = (
    AllSeedsFailedError,
    CheckpointError,
    ClientError,
    ClusterError,
    ConfigError,
    ImageError,
    LabelError,
    ModelError,
    ReportError,
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
            raise ConfigError([f"{verb!r} is not a verb; give {' or '.join(VERBS)}, or --help."])
        config = load_config(words)
        return attack(config, console) if verb == "attack" else capture(config, console)
    except _REFUSALS as error:
        errors.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print(_interrupted(words), markup=False, highlight=False, soft_wrap=True)
        return 130


def attack(config: RunConfig, console: Console) -> int:
    """Reconstruct the batch behind an update and write the report."""
    out = _open_folder(config)
    update, model, private = obtain(config)
    with ProgressView(console) as view:
        reconstruction = reconstruct(update, model, config, out=out, resume=config.resume, watch=view)
    control = None
    if "no_gradient" in config.audit.controls and private is not None:
        console.print("Control: the same attack without the gradient")
        with ProgressView(console) as view:
            control = reconstruct(update, model, without_gradient(config), watch=view)
    # The report tells the whole run, the client's settings too.
    reconstruction = replace(reconstruction, config=to_plain(config))
    report = evaluate(
        reconstruction,
        private,
        model_trained=_trained(config),
        lpips_weights=config.audit.lpips_weights,
        no_gradient=control,
    )
    page = write_report(report, reconstruction, private, out)
    console.print(
        f"\n{report.verdict.headline}. {report.verdict.detail}", markup=False, highlight=False, soft_wrap=True
    )
    console.print(f"Report: {page.resolve()}", markup=False, highlight=False, soft_wrap=True)
    return 0


def capture(config: RunConfig, console: Console) -> int:
    """Simulate the client and save what it sends, without attacking it."""
    out = _open_folder(config)
    update, _, _ = simulate_client(config.client, config.seed)
    path = out / "update.safetensors"
    update.save(path)
    console.print(f"Captured update: {path.resolve()}", markup=False, highlight=False, soft_wrap=True)
    return 0


def without_gradient(config: RunConfig) -> RunConfig:
    """The no-gradient control: everything as it is, but the gradient counts for nothing."""
    return replace(
        config,
        objective=replace(config.objective, gradient_weight=0.0),
        peeling=replace(config.peeling, enabled=False),
    )


def obtain(config: RunConfig) -> tuple[CapturedUpdate, nn.Module, PrivateBatch | None]:
    """The update with its model: from a file, without any private image, or from a simulated client."""
    if config.update is None:
        return simulate_client(config.client, config.seed)
    update = CapturedUpdate.load(config.update)
    client = config.client
    model = load_model(client.model, client.classes, update.image_shape[-1], client.weights, config.seed)
    update.require_match(model)
    return update, model, None


def _open_folder(config: RunConfig) -> Path:
    out = Path(config.out)
    if config.resume and (out / "config.yaml").exists():
        _require_same_run(config, out / "config.yaml")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text(config_yaml(config))
    except OSError as error:
        raise ReportError(f"out={config.out} cannot be written ({error.strerror}); give a folder that can.") from None
    return out


def _require_same_run(config: RunConfig, path: Path) -> None:
    """Before anything in the folder is written, so that the other run can still be resumed."""
    found = differences(load_config_file(path), config)
    if found:
        listed = "".join(f"\n  - {line}" for line in found)
        raise ConfigError([f"{path.parent} holds a run with other settings; give those, or another out:{listed}"])


def _trained(config: RunConfig) -> bool | None:
    if config.client.weights is not None:
        return True
    return False if ":" not in config.client.model else None


def _interrupted(words: list[str]) -> str:
    again = " ".join(["python run.py", *(word for word in words if not word.startswith("resume=")), "resume=true"])
    return f"Interrupted. The rounds finished so far are saved; this continues after the last one:\n  {again}"


if __name__ == "__main__":
    sys.exit(main())

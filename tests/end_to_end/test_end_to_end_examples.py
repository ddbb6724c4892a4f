"""The examples of the documentation, run as they stand."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from gradinversion.capture import CapturedUpdate, Defence, LocalTraining, Sampling, UpdateKind

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
NEEDS = {"opacus_step": ("opacus", "opacus"), "timm_model": ("timm", "timm")}


def run(name: str, out: Path, folder: Path = EXAMPLES) -> str:
    module, extra = NEEDS.get(name, (None, None))
    if module is not None and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install 'gradinversion[{extra}]'")
    path = os.pathsep.join(entry for entry in sys.path if entry)
    shown = subprocess.run(
        [sys.executable, str(folder / f"{name}.py"), str(out)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=out.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_every_example_is_run_here_and_is_told_of() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {*NEEDS, "weight_delta"}
    page = (EXAMPLES.parent / "frameworks.md").read_text(encoding="utf-8")
    assert all(f"examples/{name}.py" in page for name in names)
    assert "flwr run docs/examples/flower_app" in page


def test_a_round_of_a_flower_simulation(tmp_path: Path) -> None:
    pytest.importorskip("flwr", reason="flwr is not installed: pip install 'gradinversion[flower]'")
    shown = run("flower_round", tmp_path / "captured", Path(__file__).parent)
    assert "Problem:" not in shown
    (path,) = (tmp_path / "captured").glob("round-0002-client-*.safetensors")
    update = CapturedUpdate.load(path)
    assert update.kind is UpdateKind.WEIGHT_DELTA
    assert update.local == LocalTraining(0.01, epochs=2, batch_size=4)
    assert update.image_count == 8
    # Nothing was left to be assumed, and the settings of the run were read.
    assert not any(fact.assumed for _, fact in update.facts.items())
    assert update.facts.local is not None
    assert update.facts.local.epochs.source == "the settings of the run"
    assert update.facts.local.learning_rate.source == "the server's message to the client"


@pytest.mark.slow  # Flower makes an environment for the run, from PyPI
def test_a_flower_app_that_flwr_run_starts(tmp_path: Path) -> None:
    """As a user types it, with a SuperLink of its own that ends with the test."""
    flwr = shutil.which("flwr", path=str(Path(sys.executable).parent))
    if flwr is None:
        pytest.skip("flwr is not installed: pip install 'gradinversion[flower]'")
    ports = [str(port) for port in free_ports(2)]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": ports[0],
        "FLWR_LOCAL_CONTROL_API_PORT": ports[1],
        "RAY_ADDRESS": "local",
    }
    out = tmp_path / "captured"
    command = [flwr, "run", str(EXAMPLES / "flower_app"), "--stream", "--run-config", f"captured='{out}'"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    finally:
        end_superlink(ports[1])
    (path,) = out.glob("round-0002-client-*.safetensors")
    assert f"Captured update: {path}" in done.stdout
    assert "Problem:" not in done.stdout
    update = CapturedUpdate.load(path)
    assert update.local == LocalTraining(0.01, epochs=2, batch_size=4)
    assert not any(fact.assumed for _, fact in update.facts.items())


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def end_superlink(port: str) -> None:
    """The one that listens there, which Flower leaves behind."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_text().split("\0") if entry.name.isdigit() else []
            if any("flower-superlink" in word for word in words) and f"127.0.0.1:{port}" in words:
                os.kill(int(entry.name), signal.SIGKILL)


def test_a_step_of_opacus(tmp_path: Path) -> None:
    assert "epsilon" in run("opacus_step", tmp_path / "private.safetensors")
    update = CapturedUpdate.load(tmp_path / "private.safetensors")
    assert update.kind is UpdateKind.GRADIENT
    assert update.defences == (Defence("dp_sgd", 1.1, (1.0,)),)
    assert update.facts.sampling.value == Sampling(True, 8.0)
    assert not any(fact.assumed for _, fact in update.facts.items())


def test_a_weight_delta_of_plain_pytorch(tmp_path: Path) -> None:
    run("weight_delta", tmp_path / "delta.safetensors")
    update = CapturedUpdate.load(tmp_path / "delta.safetensors")
    assert update.local == LocalTraining(0.01, epochs=3, momentum=0.9)
    assert not any(fact.assumed for _, fact in update.facts.items())


def test_a_timm_model_from_a_checkpoint(tmp_path: Path) -> None:
    run("timm_model", tmp_path / "gradient.safetensors")
    assert CapturedUpdate.load(tmp_path / "gradient.safetensors").model_id == "timm:resnet10t"

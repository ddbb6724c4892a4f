"""The real command in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gradinversion.benchmarks import cluster_ports
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FEW_STEPS = ("agents.count=2", "agents.iterations=200", "coordinator.period=50", "coordinator.start=0.5")


def command(*words: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), *words]


def environment() -> dict[str, str]:
    # No cluster of somebody else, and no colour codes in what is read back.
    return os.environ | {"RAY_ADDRESS": "local", "NO_COLOR": "1"}


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), cwd=cwd, env=environment(), capture_output=True, text=True, check=False)


def begin(*words: str, cwd: Path, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*words),
        cwd=cwd,
        env=environment(),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A suite that was started in the background ignores the interrupt, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_a_checkpoint(out: Path, process: subprocess.Popen[str]) -> None:
    # Any: a round is skipped while the one before it is still being written.
    while not list((out / "checkpoints").glob("round-*/manifest.json")):
        assert process.poll() is None, f"the run ended before a round was saved: {process.communicate()[1]}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(f"out={folder}/out", *FEW_STEPS, "export=csv", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Report: " in done.stdout
    assert "Exported: " in done.stdout
    return folder / "out"


def test_c4_at_few_steps_is_far_above_the_constant_image(undisturbed: Path) -> None:
    report = json.loads((undisturbed / "report.json").read_text())
    assert report["label_accuracy"] == 1.0
    assert report["psnr_mean"] > 26
    assert report["psnr_mean"] > report["constant_image_psnr"] + 6
    assert report["agents"] == 2
    assert report["iterations"] == 200
    assert report["rounds"] == 4
    assert report["outcome"] == "all steps done"
    assert report["gradient_loss"] < 0.2
    assert len(report["images"]) == 4


def test_out_holds_every_promised_file(undisturbed: Path) -> None:
    promised = {"report.json", "report.html", "reconstruction.png", "reconstruction.safetensors", "config.yaml"}
    promised |= {"metrics.jsonl", "checkpoints", "curves.csv", "images.csv"}
    assert promised <= {path.name for path in undisturbed.iterdir()}


def test_killed_and_resumed_gives_equal_bytes(undisturbed: Path, tmp_path: Path) -> None:
    """The command and all with it, and when it goes on, its coordinator alone."""
    out = tmp_path / "out"
    process = begin(f"out={out}", *FEW_STEPS, cwd=tmp_path)
    wait_for_a_checkpoint(out, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    require_nothing_left(process.pid)
    assert process.stderr is not None
    process.stderr.close()
    assert not (out / "report.json").exists()
    resumed = begin(f"out={out}", *FEW_STEPS, "resume=true", cwd=tmp_path, stdout=subprocess.PIPE)
    killed = kill_the_coordinator(resumed)
    printed, errors = resumed.communicate()
    assert resumed.returncode == 0, printed + errors
    assert "Continued after round" in printed
    assert errors == ""
    assert killed
    for name in ("reconstruction.safetensors", "reconstruction.png"):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes()


def kill_the_coordinator(process: subprocess.Popen[str]) -> bool:
    """As soon as it is there; False where the run ended before."""
    while process.poll() is None:
        for one in cluster_ports.session(process.pid):
            if one.command.startswith("ray::CoordinatorProcess"):
                os.kill(one.number, signal.SIGKILL)
                return True
        time.sleep(0.02)
    return False


def test_a_run_is_closed_to_others_and_ends_in_order_when_it_is_told_to(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = begin(f"out={out}", "agents.count=2", "agents.iterations=100000", "coordinator.period=20", cwd=tmp_path)
    wait_for_a_checkpoint(out, process)
    require_closed(process.pid)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "resume=true" in errors
    assert len(errors.splitlines()) == 2
    assert list((out / "checkpoints").glob("round-*/manifest.json"))
    require_nothing_left(process.pid)


def require_nothing_left(leader: int) -> None:
    """All processes of a session end, soon: Ray by itself takes a minute more."""
    deadline = time.monotonic() + 30
    while (left := cluster_ports.session(leader)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def require_closed(leader: int) -> None:
    """No process of a session can be reached from another machine, and on this one only by who has the token."""
    processes = {one.number: one.command for one in cluster_ports.session(leader)}
    listening = cluster_ports.listeners(processes)
    assert [one for one in listening if not one.is_loopback] == []
    # Ray names its programs by their paths.
    gcs = next(one for one in listening if "gcs_server" in processes[one.process].split()[0])
    address = cluster_ports.address_beyond_loopback()
    assert address is None or not any(cluster_ports.answers(address, one.port) for one in listening)
    assert cluster_ports.answers("127.0.0.1", gcs.port)
    assert not cluster_ports.lets_in(f"127.0.0.1:{gcs.port}", token=None)
    assert not cluster_ports.lets_in(f"127.0.0.1:{gcs.port}", token="0" * 64)


def test_a_captured_update_is_audited_without_any_private_image(tmp_path: Path) -> None:
    saved = run("capture", f"out={tmp_path}/captured", cwd=tmp_path)
    assert saved.returncode == 0, saved.stderr
    update = tmp_path / "captured" / "update.safetensors"
    steps = ("agents.count=1", "agents.iterations=40", "coordinator.period=20")
    done = run(f"out={tmp_path}/out", f"update={update}", *steps, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["psnr_mean"] is None
    assert report["gradient_loss"] < 1
    assert "no ground truth" in done.stdout.lower()


OWN_MODEL = """
from torch import nn
def grey(num_classes):
    return nn.Sequential(nn.Conv2d(1, 8, 5, 2, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(8 * 12 * 8, num_classes))
"""


def test_the_owner_of_the_data_audits_his_own_client(tmp_path: Path) -> None:
    """Grey images that are not square, 30 classes, a model in the current folder, and class folders of the images."""
    (tmp_path / "own_of_the_owner.py").write_text(OWN_MODEL)
    for place, name in enumerate(("boat", "cat", "dog")):
        (tmp_path / "private" / name).mkdir(parents=True)
        pixels = np.random.default_rng(place).integers(0, 256, (6, 4), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(tmp_path / "private" / name / "one.png")
    client = (
        "client.model=own_of_the_owner:grey",
        "client.channels=1",
        "client.image_size=24",
        "client.image_width=16",
    )
    told = ("client.classes=30", "client.batch_size=3", "client.images=private")
    saved = run("capture", "out=sent", *client, *told, cwd=tmp_path)
    assert saved.returncode == 0, saved.stderr
    audited = ("audit.controls=other_images", "audit.pool=photos")
    steps = ("agents.count=1", "agents.iterations=20", "coordinator.period=10", *audited)
    words = ("update=sent/update.safetensors", "private=private", "client.model=own_of_the_owner:grey", "out=out")
    done = run(*words, *steps, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The private images give this update" in done.stdout
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["truth_gap"] < 1e-4
    assert [image["true_label"] for image in found["images"]] == [0, 1, 2]
    assert found["psnr_mean"] is not None
    assert found["constant_image_psnr"] is not None
    assert found["controls"][0]["name"] == "other_images"
    assert found["controls"][0]["problem"] == ""
    assert found["config"]["client"]["classes"] == 30
    (tmp_path / "out" / "report.json").unlink()
    again = run("report", "out=out", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["psnr_mean"] == found["psnr_mean"]

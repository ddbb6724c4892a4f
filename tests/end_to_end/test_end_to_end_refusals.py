"""Bad input through the real entry point: one clear sentence, exit status 2, and nothing lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from gradinversion.capture import ClientConfig, simulate_client
from gradinversion.run import main
from PIL import Image


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.err


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def captured(tmp_path: Path) -> Path:
    update, _, _ = simulate_client(ClientConfig(), 0)
    update.save(tmp_path / "update.safetensors")
    return tmp_path / "update.safetensors"


def test_unknown_keys_are_named_with_the_nearest_and_all_together(capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(capsys, "agents.cuont=3", "clinet.batch_size=2", "agents.iterations=many")
    assert "agents.cuont" in text
    assert "agents.count" in text
    assert "client.batch_size" in text
    assert "agents.iterations" in text


def test_an_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert "attack" in refused(capsys, "atack")


def test_a_missing_update_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.safetensors" in refused(capsys, "update=none.safetensors")


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 64])
def test_a_hostile_update_file(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.safetensors").write_bytes(content)
    assert "bad.safetensors" in refused(capsys, "update=bad.safetensors")


def test_a_truncated_update_file(capsys: pytest.CaptureFixture[str], captured: Path) -> None:
    captured.write_bytes(captured.read_bytes()[:-100])
    assert "update.safetensors" in refused(capsys, f"update={captured}")


def test_facts_that_are_told_of_a_simulated_client(capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(capsys, "told.momentum=0.9", "told.loss=cross_entropy")
    assert "told.loss, told.momentum: a simulated client tells everything itself; give update=FILE" in text


def test_facts_that_cannot_be_told_all_together(capsys: pytest.CaptureFixture[str], captured: Path) -> None:
    text = refused(capsys, f"update={captured}", "told.momentum=2", "told.reduction=median", "agents.count=0")
    for part in ("told.momentum=2: give", "told.reduction=median: give one of mean, sum", "agents.count=0"):
        assert part in text


def test_local_steps_that_are_told_of_a_gradient(capsys: pytest.CaptureFixture[str], captured: Path) -> None:
    assert "told.epochs=2: the update is a gradient" in refused(capsys, f"update={captured}", "told.epochs=2")


def test_an_update_of_another_model_lists_the_first_mismatches(
    capsys: pytest.CaptureFixture[str], captured: Path
) -> None:
    text = refused(capsys, f"update={captured}", "client.model=resnet18", "client.classes=10")
    assert "conv1.weight" in text
    assert "fc.bias" in text
    assert " more" in text  # twenty are listed


def test_an_update_of_the_same_model_with_other_weights(capsys: pytest.CaptureFixture[str], captured: Path) -> None:
    assert "hash" in refused(capsys, f"update={captured}", "seed=5")


def test_an_empty_image_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(capsys, "client.images=empty")


def test_an_unreadable_image_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    assert "broken.png" in refused(capsys, "client.images=pictures", "client.batch_size=1")


def test_a_path_is_shown_as_it_is_though_it_holds_the_name_of_an_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    assert "x:b:y/[red]z" in refused(capsys, "client.images=x:b:y/[red]z")


def test_more_classes_than_any_memory_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert "it must be at most 1000000" in refused(capsys, "client.classes=100000000000000")


def test_an_objective_of_terms_that_the_model_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "objective.gradient_weight=0",
        "objective.total_variation_weight=0",
        "agents.count=1",
        "client.batch_size=1",
    ]
    assert "the objective has no term" in refused(capsys, *words)


def test_a_batch_larger_than_the_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (40, 40), (10, 200, 30)).save(tmp_path / "pictures" / "one.png")
    text = refused(capsys, "client.images=pictures", "client.batch_size=3")
    assert "3" in text
    assert "1" in text


def test_out_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "out=file" in refused(capsys, "out=file")


def test_a_full_disk_keeps_what_was_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("report.json", "config.yaml"):
        (out / name).write_text(f"the old {name}")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in refused(capsys, f"out={out}")
    for name in ("report.json", "config.yaml"):
        assert (out / name).read_text() == f"the old {name}"


def test_a_refused_command_leaves_the_folder_as_it_was(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    begun = tmp_path / "out" / "config.yaml"
    begun.parent.mkdir()
    begun.write_text("seed: 7\n")
    for words in (["update=/does/not/exist"], ["client.images=/does/not/exist"], ["audit.pool=/does/not/exist"]):
        refused(capsys, "out=out", *words)
        refused(capsys, "out=new", *words)
    assert begun.read_text() == "seed: 7\n"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("verb", ["report", "watch"])
def test_code_that_a_folder_names_is_not_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str) -> None:
    (tmp_path / "evil.py").write_text("open('ran', 'w')\n\ndef build():\n    raise SystemExit(7)\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("client:\n  model: evil:build\n")
    assert "client.model=evil:build" in refused(capsys, verb, "out=out")
    assert not (tmp_path / "ran").exists()


def test_labels_that_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert "client.labels" in refused(capsys, "client.labels=0,1,77", "client.batch_size=3")


def test_help_shows_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help", "all"]) == 0
    text = capsys.readouterr().out
    for key in ("agents.count", "coordinator.mode", "client.bn", "objective.group_weight", "audit.controls"):
        assert key in text


def test_capture_writes_an_update_that_loads(tmp_path: Path) -> None:
    from gradinversion.capture import CapturedUpdate

    assert (
        main(
            ["capture", "out=captured", "client.bn=train_shared", "client.defence=prune", "client.defence_strength=0.5"]
        )
        == 0
    )
    update = CapturedUpdate.load(tmp_path / "captured" / "update.safetensors")
    assert update.buffers is not None
    assert update.batch_norm.value == "train_shared"
    zeros = torch.cat([gradient.flatten() == 0 for gradient in update.gradients.values()])
    assert 0.45 < float(zeros.float().mean()) < 0.55

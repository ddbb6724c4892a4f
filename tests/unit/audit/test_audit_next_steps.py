"""What a report advises, and what of it may be shown to others."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from gradinversion.audit import Control, evaluate, write_report
from gradinversion.audit.next_steps import next_steps
from gradinversion.audit.page import render_page
from gradinversion.audit.redaction import LEFT_OUT, without_names, without_paths
from gradinversion.audit.verdict import Leak, Verdict
from gradinversion.capture import PrivateBatch
from gradinversion.coordinator import Reconstruction
from gradinversion.settings.catalogue import catalogue

# Their meanings speak of files, and their values are none.
NAMES_NO_FILE = {"client.labels", "export"}
Attack = Callable[..., tuple[Reconstruction, PrivateBatch]]


@pytest.mark.parametrize(
    ("leak", "part"),
    [
        (Leak.LEAKED, "the verb audit with budget=10m"),
        (Leak.WEAK, "the verb audit with budget=10m"),
        (Leak.NONE, "agents.iterations=2000"),
        (Leak.FAILED, "agents.learning_rate=0.01"),
    ],
)
def test_each_verdict_has_its_next_step(attack: Attack, leak: Leak, part: str) -> None:
    reconstruction, private = attack()
    report = dataclasses.replace(evaluate(reconstruction, private), verdict=Verdict(leak, "as it is"))
    assert any(part in line for line in next_steps(report, reconstruction))
    assert any("audit.controls=" in line for line in next_steps(report, reconstruction))


def test_without_the_images_they_are_asked_for(attack: Attack) -> None:
    reconstruction, _ = attack()
    steps = next_steps(evaluate(reconstruction, None), reconstruction)
    assert any("private=FOLDER" in line for line in steps)


def test_a_redacted_page_shows_no_picture_and_no_name(attack: Attack, tmp_path: Path) -> None:
    reconstruction, private = attack(batch=2)
    private = dataclasses.replace(private, names=("anna_smith.png", "bert_jones.png"))
    settings = {"out": "/home/anna", "client": {"images": "/home/anna/photos", "batch_size": 2}, "agents": {"count": 4}}
    reconstruction = dataclasses.replace(reconstruction, config=settings)
    controls = (Control("no_gradient", reconstruction),)
    report = evaluate(reconstruction, private, controls=controls)
    write_report(report, reconstruction, private, tmp_path, controls, again="gradinversion seed=3", redact=True)
    whole, page = ((tmp_path / name).read_text() for name in ("report.html", "report-redacted.html"))
    for secret in ("data:image/", "anna", "bert", "gradinversion seed=3"):
        assert secret in whole
        assert secret not in re.sub(r"img-src data:;", "", page)
    assert f"client.images={LEFT_OUT}" in page
    assert "client.batch_size=2" in page
    assert "image 1" in page
    for image in report.images:  # the numbers are all there
        assert image.psnr is not None
        assert f"{image.psnr:.1f} dB" in page


def test_every_setting_that_may_name_a_file_is_left_out_of_a_page_for_others() -> None:
    """One that is added, and that its meaning says to be a file or a folder, is to be listed."""
    files = re.compile(r"\b(files?|folders?|FOLDER|FILE)\b|\.(safetensors|pt|ya?ml)\b", re.IGNORECASE)
    words = {name: key for name, key in catalogue().items() if key.kind in (str, str | None, tuple[str, ...])}
    named = {name for name, key in words.items() if files.search(key.meaning)} - NAMES_NO_FILE
    assert {name for name in named if without_paths({name: "secret"})[name] != LEFT_OUT} == set()


def test_without_redaction_nothing_is_left_out(attack: Attack, tmp_path: Path) -> None:
    reconstruction, private = attack()
    report = evaluate(reconstruction, private)
    write_report(report, reconstruction, private, tmp_path)
    assert not (tmp_path / "report-redacted.html").exists()
    assert "Left out of this page" not in render_page(report, reconstruction, private)
    assert [image.name for image in without_names(report).images] == [
        f"image {n + 1}" for n in range(len(private.names))
    ]
    assert without_paths({"out": "", "update": None, "seed": 3}) == {"out": "", "update": None, "seed": 3}

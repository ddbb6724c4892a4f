"""Files made by hand through the real entry point: each refused with a sentence, at once, and nothing changed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from gradinversion.benchmarks.fault_cases import SECRET, Case, cases
from gradinversion.run import main

# The benchmark of the same name has them at their full size.
CASES = [case for case in cases(json_bytes=12 * 2**20) if "2 GiB" not in case.what]


@pytest.mark.wrong_shapes
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.door}: {case.what}")
def test_hostile_files_are_refused(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("RAY_ADDRESS", "local"), *case.environment):
        monkeypatch.setenv(name, value)
    given = tmp_path / "given"
    given.mkdir()
    case.make(given)
    before = {path: path.lstat().st_mtime_ns for path in given.rglob("*")}
    began = time.process_time()
    assert main([word.replace("{}", str(given)) for word in case.words]) == 2
    assert time.process_time() - began < 10
    said = "".join(capsys.readouterr())
    assert 0 < len(said) < 12_000
    assert said.replace("\n", "").isprintable()
    assert SECRET not in said
    assert "Traceback" not in said
    assert {path: path.lstat().st_mtime_ns for path in given.rglob("*")} == before
    assert not (tmp_path / "new").exists()

"""The script for whoever has a GPU runs where there is none, in its small form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu import PARTS, main


def test_every_part_but_the_largest_network_runs_on_a_processor(tmp_path: Path) -> None:
    out, parts = tmp_path / "gpu.json", [part for part in PARTS if part != "step"]
    main(["--device", "cpu", "--quick", "--out", str(out), "--parts", *parts])
    found = json.loads(out.read_text())
    assert found["equal"]["derivative"] == 0
    assert all("problem" not in found[part] for part in parts)


def test_without_a_gpu_it_says_how_to_try_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="give --device cpu --quick"):
        main([])

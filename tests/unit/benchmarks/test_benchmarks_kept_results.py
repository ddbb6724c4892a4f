"""What benchmarks of commands write down: no folders of one machine, and no runs of different settings together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from gradinversion.benchmarks import fault_disk_run, fault_storage, startup

RESULTS = Path(fault_storage.RESULTS).parent


def test_no_result_names_a_folder_of_the_machine_it_was_made_on() -> None:
    found = {path.name for path in RESULTS.glob("*.json") if re.search(r"/(tmp|work|home)/\w", path.read_text())}
    assert found == set()


def test_words_stand_for_the_places_that_a_command_names() -> None:
    command = f"python {fault_storage.ROOT}/run.py report out=/tmp/gradinversion-kept-a_1"
    assert fault_storage.without_places(f"It is in /tmp/gradinversion-kept-a_1, and: {command}") == (
        "It is in KEPT, and: python run.py report out=KEPT"
    )
    places = {"/tmp/x/kept": "KEPT", "/tmp/x": "FOLDER"}
    assert (
        fault_disk_run.without_places("/tmp/x/out is full; see /tmp/x/kept", places) == "FOLDER/out is full; see KEPT"
    )


def test_both_statuses_of_a_server_that_is_gone_and_back_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fault_storage, "RESULTS", tmp_path / "storage.json")
    fault_storage.keep(fault_storage.Row(fault_storage.GONE, 0, True, {"refused": 2}, 5.0, before=3))
    rows = fault_storage.keep(fault_storage.Row("30 % refused", 0, True, {"refused": 4}, 2.0))
    refused, gone = fault_storage.table(rows).splitlines()[-2:]
    assert refused == "| 30 % refused | 4 | 0 | yes | 2 |"
    assert gone.endswith("| 2 | 3, then 0 | yes | 5 |")


def test_runs_are_added_to_those_of_the_same_settings_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "RESULTS", tmp_path / "startup.json")
    assert startup.kept("new", ["agents.count=1"]) == []
    saved = {"words": ["agents.count=1"], "each": [{"seconds": {"end": 2.0}}]}
    startup.RESULTS.write_text(json.dumps({"old": saved}))
    assert startup.kept("old", ["agents.count=1"]) == saved["each"]
    with pytest.raises(SystemExit, match=r"old has runs of other settings \(agents\.count=1\): give another name"):
        startup.kept("old", [])


def test_a_moment_that_a_run_was_not_seen_at_is_no_zero_in_the_median() -> None:
    runs: list[dict[str, Any]] = [
        {
            "memory_mib": {"command": 300.0, "agents": 400.0},
            "beside_agents_mib": {"most": 700.0, "behind loaded": 500.0},
        },
        {"memory_mib": {"command": 100.0}, "beside_agents_mib": {"most": 500.0}},
    ]
    found = startup.middle(runs)
    assert found["beside_agents_mib"] == {"most": 600.0, "behind loaded": 500.0}
    assert found["memory_mib"] == {"command": 200.0, "agents": 200.0}

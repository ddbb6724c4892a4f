"""The short form of the fuzzing: a few files of each kind, changed at random."""

from __future__ import annotations

from pathlib import Path

import pytest
from gradinversion.benchmarks import fault_kills
from gradinversion.benchmarks.faults import Found, run_kind, table
from gradinversion.benchmarks.mutants import DOORS


@pytest.mark.wrong_shapes
@pytest.mark.parametrize("kind", list(DOORS))
def test_changed_files_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    found = run_kind(kind, 60, 3, tmp_path)
    assert (found.undocumented, found.slow, found.large) == (0, 0, 0), found.examples
    assert found.read + found.refused == found.mutants == 60
    assert found.refused > 0


def test_the_table_has_a_row_for_each_kind() -> None:
    assert table([Found("yaml", 1000, 5, 995)]).splitlines()[-1] == "| yaml | 1,000 | 5 | 995 | 0 | 0 | 0 | 0 | 0 |"


def test_kills_of_several_seeds_are_counted_together_and_clusters_apart() -> None:
    kills = dict.fromkeys(fault_kills.KINDS, 1)
    parts = [fault_kills.Found(2, kills, 2), fault_kills.Found(3, kills, 1, left=4)]
    parts.append(fault_kills.Found(1, {"a node": 3}, 1, open_ports=None, place="cluster"))
    local, cluster = fault_kills.table(parts).splitlines()[-2:]
    assert local.startswith("| local | 10 | an agent 2, the coordinator 2,")
    assert local.endswith("everything 2 | 5 | 3 | 4 | 0 |")
    assert cluster == "| cluster | 3 | a node 3 | 1 | 1 | 0 | – |"


def test_what_a_seed_found_is_kept_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_kills, "RESULTS", tmp_path / "kills.json")
    fault_kills.keep("1", fault_kills.Found(2, {"both": 1}, 2))
    fault_kills.keep("2", fault_kills.Found(1, {"both": 3}, 1))
    again = fault_kills.keep("2", fault_kills.Found(4, {"both": 5}, 4))
    assert [part.runs for part in again] == [2, 4]


def test_the_newest_whole_round_of_a_folder(tmp_path: Path) -> None:
    assert fault_kills.saved_round(tmp_path) == -1
    for round, whole in ((3, True), (12, True), (13, False)):
        folder = tmp_path / "checkpoints" / f"round-{round:06d}"
        folder.mkdir(parents=True)
        if whole:
            (folder / "manifest.json").write_text("{}")
    assert fault_kills.saved_round(tmp_path) == 12
    part = tmp_path / "checkpoints" / "round-000013-part-1000001"
    part.mkdir()
    (part / "manifest.json").write_text("{}")
    assert fault_kills.saved_round(tmp_path) == 12

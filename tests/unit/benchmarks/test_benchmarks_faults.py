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


def test_kills_of_several_seeds_are_counted_together() -> None:
    kills = dict.fromkeys(fault_kills.KINDS, 1)
    row = fault_kills.table([fault_kills.Found(2, kills, 2), fault_kills.Found(3, kills, 1, left=4)]).splitlines()[-1]
    assert row.startswith("| 10 | an agent 2, the coordinator 2,")
    assert row.endswith("everything 2 | 5 | 3 | 4 | 0 |")

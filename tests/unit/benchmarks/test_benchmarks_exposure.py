"""The parts of the benchmark of exposure that need no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.benchmarks.exposure import (
    CLASSES,
    SEEN,
    Rows,
    interval,
    is_same_attack,
    make_cases,
    paired,
    read_rows,
    summarise,
    within,
)
from gradinversion.capture import load_images


def make_rows(slope: float, batches: int = 4) -> Rows:
    """Gains that rise with the share by `slope`; the wrong label adds 5 dB to every crop."""
    rows: Rows = []
    for batch in range(batches):
        for version, wrong in enumerate(((0,), (1, 2))):
            for crop in range(4):
                kind = "unseen" if crop == 3 else "wrong" if crop in wrong else "right"
                share = 0.1 * (crop + 1) + 0.2 * (kind == "wrong")
                facts: dict[str, Any] = {"stage": 0, "attack": "default", "accuracy": 0.5, "peeled": False}
                place = {"batch": batch, "version": version, "crop": crop, "kind": kind}
                gain = slope * share + 5 * (kind == "wrong")
                rows.append(facts | place | {"loss": share, "share": share, "gain": gain})
    return rows


def test_each_crop_comes_with_the_right_and_with_a_wrong_label() -> None:
    photos, _ = load_images("photos", 24, 64)
    cases = make_cases(photos, 3)
    assert len(cases) == 6
    for (batch, first), (again, second) in zip(cases[::2], cases[1::2], strict=True):
        assert batch == again
        for case in (first, second):
            labels = case.private.labels.tolist()
            assert labels == sorted(set(labels))
            assert set(labels) <= set(range(CLASSES))
        by_crop = [
            dict(zip(c.crops, zip(c.kinds, c.private.images, strict=True), strict=True)) for c in (first, second)
        ]
        for crop in range(4):
            (kind, image), (other, same) = by_crop[0][crop], by_crop[1][crop]
            assert torch.equal(image, same)
            assert {kind, other} == ({"unseen"} if crop == 3 else {"right", "wrong"})
    assert len(set(SEEN)) == CLASSES


def test_pairs_and_correlations_are_what_the_rows_say() -> None:
    rows = make_rows(slope=10.0)
    # 2 dB of it is the share's.
    assert paired(rows) == pytest.approx(7.0)
    assert within(rows) > 0.7
    value, low, high = interval(rows, paired)
    assert low == pytest.approx(value) == pytest.approx(high)
    (line,) = summarise(rows)
    assert (line["images"], line["peeled"]) == (32, 0.0)
    assert line["share_correlation"][0] == pytest.approx(line["loss_correlation"][0])
    assert line["wrong"]["leaked"] == 1.0
    assert summarise(make_rows(slope=-100.0))[0]["share_correlation"][0] < -0.8


def test_an_attack_is_not_run_twice_where_nothing_was_peeled(tmp_path: Path) -> None:
    row = make_rows(1.0)[0]
    facts = {"stage": 0, "attack": "no peeling", "batch": 0, "version": 0}
    assert is_same_attack(row, facts)
    assert not is_same_attack(row | {"peeled": True}, facts)
    assert not is_same_attack(row, facts | {"batch": 1})
    path = tmp_path / "rows.json"
    assert read_rows(path, 300, 4) == []
    path.write_text(json.dumps({"steps": 300, "batches": 4, "rows": [row]}))
    assert read_rows(path, 300, 4) == [row]
    assert read_rows(path, 400, 4) == []

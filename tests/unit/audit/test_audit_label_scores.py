"""Scores of recovered labels, on cases small enough to count by hand, and on the page."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gradinversion.audit import evaluate
from gradinversion.audit.label_scores import LabelScores, score_labels
from gradinversion.audit.page import render_page
from gradinversion.audit.report import to_dict
from gradinversion.capture import PrivateBatch, RecoveredLabels
from gradinversion.coordinator import Reconstruction


@pytest.mark.parametrize(
    ("recovered", "true", "scores"),
    [
        ([0, 1, 1, 5], [5, 1, 0, 1], LabelScores(1.0, 1.0, 1.0, 1.0)),
        ([0, 0, 0, 5], [0, 5, 5, 5], LabelScores(1.0, 1.0, 0.0, 0.5)),
        # Found 1, 2, 3; private 1, 2: one class too many, 2 counted right, 1 once too few.
        ([1, 2, 3], [1, 1, 2], LabelScores(2 / 3, 1.0, 1 / 3, 2 / 3)),
        ([7, 7], [1, 2], LabelScores(0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_scores_by_hand(recovered: list[int], true: list[int], scores: LabelScores) -> None:
    assert score_labels(torch.tensor(recovered), torch.tensor(true)) == scores


@pytest.mark.wrong_shapes
@pytest.mark.parametrize(
    ("recovered", "true", "message"),
    [([1], [1, 2], "1 labels were recovered for 2"), ([-1], [0], "A label is -1"), ([], [], "at least one image")],
)
def test_labels_that_cannot_be_scored_are_a_sentence(recovered: list[int], true: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_labels(torch.tensor(recovered, dtype=torch.long), torch.tensor(true, dtype=torch.long))


def test_page_and_json_show_each_class_and_the_missed_ones(
    attack: Callable[..., tuple[Reconstruction, PrivateBatch]],
) -> None:
    labels = RecoveredLabels(torch.tensor([0, 0, 2, 3]), torch.tensor([0.9, 0.25, 0.9, 0.9]), "counts", "")
    reconstruction, private = attack(batch=4, labels=labels)
    report = evaluate(reconstruction, private)
    values = to_dict(report, reconstruction)["labels"]
    assert values["class_presence"] == {"precision": 1.0, "recall": 0.75}
    assert (values["class_count"], values["instances"]) == (0.5, 0.75)
    assert [(found["label"], found["count"]) for found in values["counts"]] == [(0, 2), (2, 1), (3, 1)]
    assert values["counts"][0]["confidence"] < 0.25 < values["counts"][1]["confidence"]
    page = render_page(report, reconstruction, private)
    assert "Class presence, recall" in page
    assert "<td>1</td><td>0</td><td>–</td><td>1</td>" in page
    blind = to_dict(evaluate(reconstruction, None), reconstruction)["labels"]
    assert (blind["class_presence"], blind["class_count"], blind["instances"]) == (None, None, None)
    assert "Class presence" not in render_page(evaluate(reconstruction, None), reconstruction, None)

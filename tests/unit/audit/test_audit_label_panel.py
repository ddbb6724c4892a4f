"""Labels that somebody stated are not called read off the update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from gradinversion.audit import evaluate
from gradinversion.audit.page import render_page
from gradinversion.capture import PrivateBatch
from gradinversion.coordinator import Reconstruction

Attack = Callable[..., tuple[Reconstruction, PrivateBatch]]


@pytest.mark.parametrize("known", [True, False])
def test_labels_that_were_given_are_not_called_inferred(attack: Attack, known: bool) -> None:
    reconstruction, private = attack()
    labels = dataclasses.replace(
        reconstruction.labels, method="given", assumption="The server knows the labels.", confidence=torch.ones(4)
    )
    told, truth = dataclasses.replace(reconstruction, labels=labels), private if known else None
    report = evaluate(told, truth)
    assert "Labels: given to the attack, not read off the update. The server knows the labels." in report.assumptions
    page = render_page(report, told, truth)
    for words in ("recovered from the update", "inferred from the update", "by the rule", "speaks against"):
        assert words not in page, words
    ending = ", not read off the update: 4 of 4 are those of the batch." if known else "; without ground truth nobody"
    assert f"Labels were given to the attack{ending}" in page


def test_labels_found_with_the_images_are_said_to_be(attack: Attack) -> None:
    reconstruction, private = attack()
    joint = dataclasses.replace(reconstruction.labels, method="joint", assumption="each of them holds")
    report = evaluate(dataclasses.replace(reconstruction, labels=joint), private)
    assert "Labels: optimised together with the images. Each of them holds." in report.assumptions


def test_labels_given_wrongly_are_not_called_recovered(attack: Attack) -> None:
    reconstruction, private = attack(noise=0.7)
    wrong = dataclasses.replace(reconstruction.labels, method="given", labels=torch.tensor([5, 6, 7, 8]))
    report = evaluate(dataclasses.replace(reconstruction, labels=wrong), private)
    assert "4 of 4 labels were given wrongly" in report.verdict.detail


def test_one_seed_agrees_with_nobody(attack: Attack) -> None:
    reconstruction, _ = attack(seeds=1)
    assert "a single seed agrees with nobody" in render_page(evaluate(reconstruction, None), reconstruction, None)

"""What labels and peeling show of the client's loss becomes part of the facts, and what rests on it is done again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gradinversion.agents import ObjectiveConfig
from gradinversion.capture import (
    CapturedUpdate,
    Provenance,
    Reduction,
    assumed,
    capture_gradient,
    load_images,
    load_model,
    told,
)
from gradinversion.coordinator import AttackConfig
from gradinversion.peeling import PeelingConfig
from gradinversion.target.preparation import Preparation, prepare
from torch import Tensor, nn

_UNSAID = {
    "reduction": assumed(Reduction.MEAN),
    "loss_scale": assumed(1.0),
    "label_smoothing": assumed(0.0),
    "loss": assumed("cross_entropy"),
}


def _sent(factor: float = 1.0, smoothing: float = 0.0) -> tuple[CapturedUpdate, nn.Module, Tensor]:
    model = load_model("convnet", 10, 32)
    images, _ = load_images("photos", 4, 32)
    update = capture_gradient(
        model, images, torch.arange(4), loss=nn.CrossEntropyLoss(label_smoothing=smoothing)
    ).stating(**_UNSAID)
    return replace(update, gradients={n: factor * g for n, g in update.gradients.items()}), model, images


def _words(preparation: Preparation) -> dict[str, tuple[str, Provenance, str]]:
    return {fact.name: (fact.words, fact.provenance, fact.contradiction) for fact in preparation.facts}


@pytest.mark.parametrize(
    ("factor", "smoothing", "expected"),
    [
        (1.0, 0.0, {"reduction": "mean", "loss_scale": "1", "label_smoothing": "0"}),
        (4.0, 0.0, {"reduction": "sum", "loss_scale": "1", "label_smoothing": "0"}),
        (65536.0, 0.0, {"reduction": "mean", "loss_scale": "65536", "label_smoothing": "0"}),
        (0.25, 0.0, {"reduction": "mean", "loss_scale": "0.25", "label_smoothing": "0"}),
        (1.0, 0.1, {"reduction": "mean", "loss_scale": "1", "label_smoothing": "0.1"}),
        (4.0, 0.1, {"reduction": "sum", "loss_scale": "1", "label_smoothing": "0.1"}),
    ],
)
def test_a_solved_final_layer_reads_the_loss(factor: float, smoothing: float, expected: dict[str, str]) -> None:
    update, model, _ = _sent(factor, smoothing)
    preparation = prepare(update, model, AttackConfig().request)
    found = _words(preparation)
    for name, words in expected.items():
        assert found[name] == (words, Provenance.READ, "")
    assert found["loss"][1] is Provenance.READ
    assert preparation.target.anchor is not None
    assert preparation.target.anchor.error < 1e-3
    assert preparation.labels.labels.tolist() == [0, 1, 2, 3]
    assert not any("noise" in message for message in preparation.messages)
    assert any("clipped" in message for message in preparation.messages) == (factor < 1)


def test_without_peeling_the_scale_is_open_and_what_was_told_is_contradicted() -> None:
    update, model, _ = _sent(4.0)
    config = AttackConfig(peeling=PeelingConfig(enabled=False))
    assert _words(prepare(update, model, config.request))["loss_scale"] == ("not known", Provenance.READ, "")
    sure = update.stating(loss_scale=told(1.0), reduction=told(Reduction.MEAN))
    words, _, contradiction = _words(prepare(sure, model, config.request))["loss_scale"]
    assert words == "not known"
    assert "cannot sum to more than 1" in contradiction
    # With peeling the factor is known, and nothing is left to doubt.
    assert _words(prepare(sure, model, AttackConfig().request))["reduction"] == ("sum", Provenance.READ, "")


def test_a_loss_that_nobody_knows_is_in_doubt() -> None:
    update, model, _ = _sent()
    foreign = update.stating(loss=told("foreign: focal_loss"))
    preparation = prepare(foreign, model, AttackConfig(labels="0,1,2,3").request)
    fact = next(fact for fact in preparation.facts if fact.name == "loss")
    assert fact.doubtful
    assert "none that this attack can evaluate" in fact.contradiction
    assert preparation.target.anchor is None


def test_without_a_gradient_term_nothing_is_solved() -> None:
    update, model, _ = _sent(4.0)
    config = AttackConfig(objective=ObjectiveConfig(gradient_weight=0))
    assert prepare(update, model, config.request).target.anchor is None

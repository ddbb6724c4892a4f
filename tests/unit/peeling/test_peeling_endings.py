"""Ends of a network that change no derivative: log_softmax, and a last layer whose weights are handed to a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.agents import Objective, ObjectiveConfig
from gradinversion.capture import CapturedUpdate, LabelError, capture_gradient, recover_labels
from gradinversion.peeling import peel
from gradinversion.target import Target
from torch import Tensor, nn

LABELS = torch.tensor([3, 7])


class _Net(nn.Module):
    def __init__(self, ends: str, bias: bool = True, relu: bool = True) -> None:
        super().__init__()
        self.ends = ends
        layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1)]
        self.body = nn.Sequential(*layers, *([nn.ReLU()] if relu else []), nn.Flatten())
        self.head = nn.Linear(16 * 16, 10, bias=bias)
        self.softmax = nn.LogSoftmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        if self.ends == "functional":
            return F.linear(features, self.head.weight, bias=self.head.bias)
        if self.ends == "functional log_softmax":
            return F.linear(features, self.head.weight, self.head.bias).log_softmax(1)
        if self.ends == "another bias":
            return F.linear(features, self.head.weight, 2 * self.head.bias)
        logits = self.head(features)
        if self.ends == "softmax":
            return logits.softmax(1)
        endings: dict[str, Callable[[Tensor], Tensor]] = {
            "plain": lambda z: z,
            "log_softmax": lambda z: F.log_softmax(z, 1),
            "module": self.softmax,
        }
        return endings[self.ends](logits)


def _capture(
    ends: str, loss: Callable[..., Tensor] | None = None, **options: bool
) -> tuple[_Net, CapturedUpdate, Tensor]:
    torch.manual_seed(0)
    model = _Net(ends, **options).eval()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    normalised = "log_softmax" in ends or ends == "module"
    loss = loss or (F.nll_loss if normalised else F.cross_entropy)
    return model, capture_gradient(model, images, LABELS, loss=loss), images


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"relu": False}])
@pytest.mark.parametrize("ends", ["functional", "log_softmax", "module", "functional log_softmax"])
def test_it_is_treated_like_its_twin(ends: str, options: dict[str, Any]) -> None:
    _, twin, _ = _capture("plain", **options)
    model, update, images = _capture(ends, **options)
    for name, gradient in twin.gradients.items():
        assert torch.allclose(update.gradients[name], gradient, rtol=1e-5, atol=1e-8)
    assert recover_labels(update, model).labels.tolist() == LABELS.tolist()
    plain, _, _ = _capture("plain", **options)
    expected, found = peel(twin, plain, LABELS).anchor, peel(update, model, LABELS).anchor
    assert expected is not None
    assert found is not None
    assert (found.module, found.explained, found.continuous) == (
        expected.module,
        expected.explained,
        expected.continuous,
    )
    assert torch.allclose(found.activations, expected.activations, rtol=1e-3, atol=1e-4)
    truth = update.normalisation.apply(images)
    objective = Objective(Target(update, model, LABELS, found), ObjectiveConfig())
    assert objective.peeled
    assert objective.gradient_loss(truth) < 1e-5
    assert float(objective.terms(truth)["activation"]) < 1e-3


@pytest.mark.parametrize("smoothing", [0.1, 0.2])
def test_log_softmax_with_smoothed_labels(smoothing: float) -> None:
    model, update, images = _capture("log_softmax", nn.CrossEntropyLoss(label_smoothing=smoothing))
    found = peel(update, model, LABELS).anchor
    assert found is not None
    assert found.error < 1e-4
    truth = update.normalisation.apply(images)
    assert Objective(Target(update, model, LABELS, found), ObjectiveConfig()).gradient_loss(truth) < 1e-5


@pytest.mark.parametrize("ends", ["softmax", "another bias"])
def test_other_ends_are_refused(ends: str) -> None:
    model, update, _ = _capture(ends)
    assert peel(update, model, LABELS).anchor is None
    if ends == "softmax":
        with pytest.raises(LabelError, match="not the output of a fully connected layer"):
            recover_labels(update, model)


def test_nll_loss_of_plain_logits_is_no_cross_entropy() -> None:
    model, update, images = _capture("plain", F.nll_loss)
    assert "the client's loss is 'nll_loss'" in peel(update, model, LABELS).message
    with pytest.raises(LabelError, match="the client's loss is 'nll_loss'"):
        recover_labels(update, model)
    truth = update.normalisation.apply(images)
    assert Objective(Target(update, model, LABELS), ObjectiveConfig()).gradient_loss(truth) < 1e-6

"""Layers that the client does not train: the attack goes on with what is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.agents import ObjectiveConfig
from gradinversion.capture import CapturedUpdate, LabelError, capture_gradient
from gradinversion.coordinator import AttackConfig
from gradinversion.target.preparation import Preparation, prepare
from torch import Tensor, nn

LABELS = torch.tensor([8, 1, 5])


class _Residual(nn.Module):
    """So few places for its channels that all of it follows from linear equations."""

    def __init__(self, *frozen: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.halved = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.quartered = nn.Conv2d(64, 64, 3, stride=2, padding=1)
        self.conv1 = nn.Conv2d(64, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1)
        self.fc = nn.Linear(64, 10)
        for name in frozen:
            self.get_submodule(name).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        value = F.relu(self.quartered(F.relu(self.halved(F.relu(self.stem(images))))))
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(value))) + value).mean((2, 3)))


def _images() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    blotches = 3 * torch.randn(3, 3, 3, 3, generator=generator)
    grain = 0.3 * torch.randn(3, 3, 8, 8, generator=generator)
    return torch.sigmoid(F.interpolate(blotches, 8, mode="bilinear", align_corners=True) + grain)


def _sent(model: nn.Module, **options: Any) -> CapturedUpdate:
    return capture_gradient(model.eval(), _images(), LABELS, **options)


def _prepared(model: nn.Module, labels: str = "auto") -> Preparation:
    return prepare(_sent(model), model, AttackConfig(labels=labels).request)


def _exact(model: nn.Module, prepared: Preparation) -> bool:
    anchor = prepared.target.anchor
    expected = _sent(model).normalisation.apply(_images()[LABELS.argsort()].double())
    return anchor is not None and float((anchor.activations - expected).norm() / expected.norm()) < 1e-4


class _Overlapping(_Residual):
    """Whose features share units, so that none is told from the derivative by these."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64 * 9, 10)
        self.fc.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        value = F.relu(self.quartered(F.relu(self.halved(F.relu(self.stem(images))))))
        value = F.relu(self.conv2(F.relu(self.conv1(value))) + value)
        return self.fc(F.avg_pool2d(value, 2, 1, 1).flatten(1))


def test_images_that_are_exact_are_the_start_where_their_labels_do_not_follow() -> None:
    model = _Overlapping()
    prepared = _prepared(model)
    assert prepared.target.joint_labels
    start = prepared.target.start
    assert start is not None
    assert start.fitted
    true = _sent(model).normalisation.apply(_images()).flatten(1)
    apart = torch.cdist(start.images.flatten(1), true)
    assert sorted(apart.argmin(dim=1).tolist()) == [0, 1, 2]
    assert float((apart.amin(dim=1) / true.norm(dim=1)).max()) < 1e-4


def test_without_the_gradient_in_the_objective_labels_have_to_be_told() -> None:
    model = _Residual("fc")
    request = AttackConfig(objective=ObjectiveConfig(gradient_weight=0.0)).request
    with pytest.raises(LabelError, match="lacks the gradient of the final layer"):
        prepare(_sent(model), model, request)


@pytest.mark.parametrize("told", ["auto", "1,5,9"])
def test_a_frozen_final_layer_hides_neither_labels_nor_images(told: str) -> None:
    model = _Residual("fc")
    prepared = _prepared(model, told)
    assert prepared.labels.labels.tolist() == [1, 5, 8]
    assert prepared.labels.method == "features"
    assert "the final layer's gradient is not in the update" in prepared.labels.assumption
    assert not prepared.target.joint_labels
    assert _exact(model, prepared)
    contradicted = any("shows class 8 where class 9 was given" in message for message in prepared.messages)
    assert contradicted == (told == "1,5,9")


def test_labels_that_a_frozen_final_layer_hides_are_optimised_with_the_images() -> None:
    prepared = _prepared(_Residual("fc", "conv2"))
    assert prepared.target.joint_labels
    assert prepared.target.anchor is None
    (limit,) = [one for one in prepared.limits if "lacks the gradient of the final layer" in one]
    assert "labels are optimised together with the images" in limit
    assert limit in prepared.messages


def test_a_rule_that_was_asked_for_says_what_it_lacks() -> None:
    with pytest.raises(LabelError, match="lacks the gradient of the final layer"):
        _prepared(_Residual("fc"), "counts")


def test_within_the_range_of_a_generator_labels_have_to_be_told() -> None:
    model = _Residual("fc", "conv2")
    with pytest.raises(LabelError, match=r"with agents\.generator give the labels"):
        prepare(_sent(model), model, AttackConfig().request, nn.Identity())


def test_behind_frozen_first_layers_images_begin_at_what_their_features_say() -> None:
    prepared = _prepared(_Residual("stem"))
    assert prepared.labels.labels.tolist() == [1, 5, 8]
    assert prepared.target.cut is not None
    assert prepared.target.start is not None
    # They may be the answer: seeds that begin there are only led away.
    assert prepared.target.start.fitted
    assert any("is not in the update" in message for message in prepared.messages)


def test_features_alone_are_known_without_the_labels_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the derivative at the final layer's input does not tell labels, seeds begin at the start all the same."""
    monkeypatch.setattr("gradinversion.peeling.recovery.labels_by_input", lambda *given: None)
    prepared = _prepared(_Residual("fc", "stem"))
    assert prepared.target.joint_labels
    assert prepared.target.cut is None
    assert prepared.target.start is not None
    assert prepared.known is not None
    assert any("Labels do not follow from these." in message for message in prepared.messages)

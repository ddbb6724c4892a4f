"""Statistics that a client sent, held against those of the batch that follow from its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import CapturedUpdate, capture_gradient
from gradinversion.peeling import PeelingConfig, recovery
from gradinversion.peeling.cut import NoCut, photo_crops, public_photos
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.own_statistics import StatisticsOff, statistics_off
from gradinversion.peeling.record import Contrast
from gradinversion.peeling.recovered import Recovery
from gradinversion.peeling.recovery import recover_images
from gradinversion.peeling.rules import Derivation
from gradinversion.peeling.rules.knowledge import Knowledge, Known
from torch import Tensor, nn


class Residual(nn.Module):
    """Places 8 x 8, 4 x 4 and 2 x 2, few for their channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.conv1 = nn.Conv2d(16, 64, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(64)
        self.down = nn.Conv2d(16, 64, 1, 2, bias=False)
        self.fc = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        value = F.relu(self.norm(self.stem(images)))
        within = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(value)))))
        return self.fc(F.relu(within + self.down(value)).mean((2, 3)))


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, CapturedUpdate]:
    model = Residual().eval()
    images = photo_crops(list(public_photos().values()), (8, 8), 3, seed=77)
    return model, capture_gradient(model, images, torch.tensor([8, 1, 5]), batch_norm="train_shared")


Change = Callable[[str, Tensor], Tensor]


def changed(update: CapturedUpdate, change: Change) -> CapturedUpdate:
    assert update.buffers is not None
    buffers = {name: one if one.dim() == 0 else change(name, one) for name, one in update.buffers.items()}
    return replace(update, buffers=buffers)


@pytest.fixture
def recovered(case: tuple[nn.Module, CapturedUpdate], monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], Recovery]:
    monkeypatch.setattr(recovery, "find_cut", lambda derivation: NoCut("not asked for"))
    return lambda change: recover_images(changed(case[1], change), case[0], PeelingConfig(operations=3e10))


def test_those_of_the_step_are_used(recovered: Callable[[Change], Recovery]) -> None:
    found = recovered(lambda name, one: one)
    assert found.steps
    assert found.statistics_off is None
    assert found.record is not None
    assert found.record.contrast is Contrast.SEEN


def test_others_are_told_from_them_and_left_out(recovered: Callable[[Change], Recovery]) -> None:
    found = recovered(lambda name, one: torch.ones_like(one) if "var" in name else torch.zeros_like(one))
    assert found.statistics_off is not None
    assert found.statistics_off.share > 0.5
    assert not found.statistics_off.rounded
    assert found.record is not None
    # As of a client that sends none.
    assert found.record.contrast is Contrast.HIDDEN


def rounded(name: str, one: Tensor) -> Tensor:
    return one.bfloat16().float()


def test_rounded_ones_are_kept_and_said_to_be(recovered: Callable[[Change], Recovery]) -> None:
    found = recovered(rounded)
    assert found.statistics_off is not None
    assert found.statistics_off.share > 0.002
    assert found.statistics_off.kept
    assert found.record is not None
    assert found.record.contrast is Contrast.SEEN


MEAN, VARIANCE = 0.37, 1.37


def with_features(momentum: float, change: Change, dead: int = 0) -> StatisticsOff | None:
    """What enters the second batch norm held against the buffers, where the features in front of it are known."""
    model = Residual().eval()
    for norm in (model.norm, model.norm1, model.norm2):
        norm.momentum = momentum
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.fill_(MEAN)
        norm.running_var.fill_(VARIANCE)
    images = photo_crops(list(public_photos().values()), (8, 8), 3, seed=77)
    with torch.no_grad():
        model.conv1.weight[:dead] = 0
        update = capture_gradient(model, images, torch.tensor([8, 1, 5]), batch_norm="train_shared")
        stem = model.stem(update.normalisation.apply(images))
        features = F.relu(F.batch_norm(stem, None, None, training=True)).double()
    graph = network_graph(model, update.image_shape, update.batch_norm, update.image_count)
    assert isinstance(graph, Graph)
    (conv,) = (node for node in graph.nodes if node.name == "conv1")
    known = Known(features, torch.ones_like(features, dtype=torch.bool), 1e-6 * torch.ones_like(features), "test")
    derivation = Derivation(graph, Knowledge().with_activations(conv.inputs[0], known))
    return statistics_off(derivation, changed(update, change), model)


def test_channels_that_are_zero_everywhere_speak_against_nothing() -> None:
    """At a momentum of 0.01 float32 buffers leave a hundred times their rounding of a variance of zero."""
    assert with_features(0.01, lambda name, one: one, dead=4) is None


def test_rounded_channels_that_are_zero_everywhere_say_nothing_of_the_others() -> None:
    off = with_features(0.1, rounded, dead=4)
    assert off is not None
    assert off.kept
    assert off.whole < 0.25 < off.share


def test_unmoved_ones_that_rounding_could_make_tell_nothing() -> None:
    off = with_features(0.001, lambda name, one: torch.full_like(one, VARIANCE if "var" in name else MEAN))
    assert off is not None
    assert off.rounded
    assert not off.kept

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.peeling.rules import Knowledge
from gradinversion.peeling.rules.image_labels import image_labels
from gradinversion.peeling.rules.input_labels import fit_labels_behind, labels_by_input
from gradinversion.peeling.rules.rule import Setting
from torch import Tensor, nn

Cases = Callable[..., Any]


def _setting(case: Any) -> Setting:
    return Setting(case.graph, case.gradients, len(case.images), 3e-2)


def _without(case: Any, layer: str) -> Any:
    for name in [name for name in case.gradients if name.startswith(layer)]:
        del case.gradients[name]
    return case


def _order(case: Any, known: Knowledge) -> Tensor:
    whole = known.complete("clone")
    assert whole is not None
    return torch.cdist(whole.values.flatten(1), case.images.double().flatten(1)).argmin(dim=1)


@pytest.mark.parametrize("count", [2, 3])
def test_each_image_is_given_its_own_label_without_the_final_layer(residual_case: Cases, count: int) -> None:
    case = residual_case(count)
    known = case.derived().knowledge
    whole = image_labels(_setting(case), known)
    case = _without(case, "7.")
    known = case.derived().knowledge
    assert image_labels(_setting(case), known) is None
    found = labels_by_input(_setting(case), known)
    assert found is not None
    assert whole is not None
    assert torch.equal(found.labels, 3 * _order(case, known))
    assert float(found.off.max()) < 1e-4
    torch.testing.assert_close(found.scales, torch.ones(count, dtype=torch.float64), rtol=1e-4, atol=0.0)
    ours, theirs = found.derivative[found.labels.argsort()], whole.derivative[whole.labels.argsort()]
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-4


def test_without_a_derivative_in_front_there_are_no_labels(residual_case: Cases) -> None:
    case = _without(residual_case(2), "7.")
    assert labels_by_input(_setting(case), Knowledge()) is None
    known = case.derived().knowledge
    assert labels_by_input(_setting(case), Knowledge(known.activations)) is None


def _case(classes: int, features: int, smoothing: float, scales: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(classes, features, generator=random, dtype=torch.float64)
    logits = torch.randn(4, classes, generator=random, dtype=torch.float64)
    labels = torch.tensor([1, 0, 1, 2])
    spread = (1 - smoothing) * F.one_hot(labels, classes) + smoothing / classes
    derivative = scales[:, None] * (logits.softmax(dim=1) - spread) @ weight / len(labels)
    return weight, derivative, logits, labels


@pytest.mark.parametrize(("classes", "features"), [(10, 64), (100, 12)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_label_and_the_factor_of_each_image_are_found(classes: int, features: int, smoothing: float) -> None:
    """With fewer features than classes too, where the derivative by the logits does not follow by itself."""
    scales = torch.tensor([0.2, 1.0, 4.0, 0.7], dtype=torch.float64)
    weight, derivative, logits, labels = _case(classes, features, smoothing, scales)
    heard = torch.rand(derivative.shape, generator=torch.Generator().manual_seed(1)) > 0.3
    found = fit_labels_behind(weight, torch.where(heard, derivative, 7.0), heard, logits, smoothing)
    assert torch.equal(found.labels, labels)
    torch.testing.assert_close(found.scales, scales)
    assert float(found.off.max()) < 1e-6
    spread = (1 - smoothing) * F.one_hot(labels, classes) + smoothing / classes
    torch.testing.assert_close(found.derivative, scales[:, None] * (logits.softmax(dim=1) - spread) / 4)


def test_features_that_do_not_tell_classes_apart_show_in_how_far_labels_are_off() -> None:
    weight, derivative, logits, _ = _case(10, 64, 0.0, torch.ones(4, dtype=torch.float64))
    weight[1] = weight[0] + 1e-9
    random = 1e-4 * torch.randn(derivative.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = fit_labels_behind(weight, derivative + random, torch.ones_like(derivative).bool(), logits)
    assert float(found.off[:3].min()) > 0.5


@pytest.mark.parametrize("heard", [0, 1])
def test_too_few_features_tell_no_label(heard: int) -> None:
    """With one feature and a factor that is open every class whose sign is right does."""
    weight, derivative, logits, _ = _case(10, 64, 0.0, torch.ones(4, dtype=torch.float64))
    known = torch.arange(64).expand(4, -1) < heard
    found = fit_labels_behind(weight, derivative, known, logits)
    assert bool(found.off.isinf().all())


def test_a_derivative_that_is_not_that_of_cross_entropy_shows_too() -> None:
    weight, derivative, logits, _ = _case(10, 64, 0.0, torch.ones(4, dtype=torch.float64))
    noise = torch.randn(derivative.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = fit_labels_behind(weight, noise, torch.ones_like(noise).bool(), logits)
    assert float(found.off.max()) > 0.5


class _Tail(nn.Module):
    """Pools in more than one way before the final layer."""

    def __init__(self, pool: nn.Module, features: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.halved = nn.Conv2d(3, 32, 3, 2, 1)
        self.quartered = nn.Conv2d(32, 64, 3, 2, 1)
        self.conv = nn.Conv2d(64, 64, 3, 1, 1)
        self.pool, self.fc = pool, nn.Linear(features, 10)

    def forward(self, images: Tensor) -> Tensor:
        value = F.relu(self.quartered(F.relu(self.halved(images))))
        return self.fc(self.pool(F.relu(self.conv(value))).flatten(1))


@pytest.mark.parametrize(
    ("pool", "features", "told"),
    [(nn.Identity(), 256, True), (nn.AvgPool2d(2), 64, True), (nn.AvgPool2d(2, 1, 1), 576, False)],
)
def test_each_unit_must_be_part_of_one_feature(
    residual_case: Cases, pool: nn.Module, features: int, told: bool
) -> None:
    case = _without(residual_case(2, model=_Tail(pool, features).eval()), "fc.")
    known = case.derived().knowledge
    found = labels_by_input(_setting(case), known)
    if not told:
        assert found is None
        return
    assert found is not None
    assert sorted(found.labels.tolist()) == [0, 3]
    assert float(found.off.max()) < 1e-4

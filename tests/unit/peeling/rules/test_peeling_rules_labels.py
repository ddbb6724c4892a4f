from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradinversion.peeling.rules import Knowledge
from gradinversion.peeling.rules.image_labels import fit_labels, image_labels
from gradinversion.peeling.rules.rule import Setting

Cases = Callable[..., Any]


def setting_of(case: Any) -> Setting:
    return Setting(case.graph, case.gradients, len(case.images), 3e-2)


@pytest.mark.parametrize("count", [2, 4])
def test_each_image_is_given_its_own_label(residual_case: Cases, count: int) -> None:
    case = residual_case(count)
    known = case.derived().knowledge
    found = image_labels(setting_of(case), known)
    assert found is not None
    order = torch.cdist(known.complete("clone").values.flatten(1), case.images.double().flatten(1)).argmin(dim=1)
    assert torch.equal(found.labels, 3 * order)
    assert float(found.off.max()) < 1e-3


@pytest.mark.parametrize("factor", [0.01, 0.37, 3.0])
def test_the_factor_of_a_loss_of_another_scale_is_found(residual_case: Cases, factor: float) -> None:
    case = residual_case(2)
    case.gradients.update({name: factor * gradient for name, gradient in case.gradients.items()})
    known = case.derived().knowledge
    found = image_labels(setting_of(case), known)
    assert found is not None
    order = torch.cdist(known.complete("clone").values.flatten(1), case.images.double().flatten(1)).argmin(dim=1)
    assert torch.equal(found.labels, 3 * order)
    torch.testing.assert_close(found.scales, torch.full((2,), factor, dtype=torch.float64), rtol=1e-3, atol=0.0)
    assert float(found.off.max()) < 1e-3


def _rows(logits: torch.Tensor, labels: torch.Tensor, scales: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    classes = logits.shape[1]
    spread = (1 - smoothing) * torch.nn.functional.one_hot(labels, classes) + smoothing / classes
    return scales[:, None] * (logits.softmax(dim=1) - spread) / len(labels)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_each_image_may_count_by_a_factor_of_its_own(classes: int, smoothing: float) -> None:
    logits = torch.randn(4, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, scales = torch.tensor([1, 0, 1, 0]), torch.tensor([0.2, 1.0, 4.0, 0.7], dtype=torch.float64)
    found = fit_labels(_rows(logits, labels, scales, smoothing), logits, smoothing)
    assert torch.equal(found.labels, labels)
    torch.testing.assert_close(found.scales, scales)
    assert float(found.off.max()) < 1e-6


def test_an_image_that_the_network_is_sure_of_is_given_the_factor_of_the_others() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 10, generator=random, dtype=torch.float64)
    logits[1, 4] = 25.0
    labels, scales = torch.tensor([2, 4, 2]), torch.full((3,), 3.0, dtype=torch.float64)
    rows = _rows(logits, labels, scales)
    rows += 1e-7 * torch.randn(rows.shape, generator=random, dtype=torch.float64)
    found = fit_labels(rows, logits)
    assert torch.equal(found.labels, labels)
    torch.testing.assert_close(found.scales, scales, rtol=1e-5, atol=0.0)
    assert float(found.off.max()) < 1e-3


def test_a_derivative_that_is_not_that_of_cross_entropy_shows_in_how_far_labels_are_off() -> None:
    random = torch.Generator().manual_seed(0)
    logits, rows = torch.randn(2, 3, 10, generator=random, dtype=torch.float64)
    assert float(fit_labels(rows, logits).off.max()) > 0.5


def test_without_features_there_are_no_labels(residual_case: Cases) -> None:
    assert image_labels(setting_of(residual_case(2)), Knowledge()) is None


def test_a_frozen_final_layer_tells_no_labels(residual_case: Cases) -> None:
    case = residual_case(2)
    del case.gradients["7.weight"]
    assert image_labels(setting_of(case), case.derived().knowledge) is None

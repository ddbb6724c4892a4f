from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradinversion.peeling.rules import Knowledge
from gradinversion.peeling.rules.image_labels import image_labels
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


def test_a_gradient_of_another_scale_shows_in_how_far_labels_are_off(residual_case: Cases) -> None:
    case = residual_case(2)
    case.gradients["7.weight"] = 3 * case.gradients["7.weight"]
    found = image_labels(setting_of(case), case.derived().knowledge)
    assert found is not None
    assert float(found.off.max()) > 0.5


def test_without_features_there_are_no_labels(residual_case: Cases) -> None:
    assert image_labels(setting_of(residual_case(2)), Knowledge()) is None


def test_a_frozen_final_layer_tells_no_labels(residual_case: Cases) -> None:
    case = residual_case(2)
    del case.gradients["7.weight"]
    assert image_labels(setting_of(case), case.derived().knowledge) is None

"""One image with batch norm on its own statistics: what is stated of derivatives holds against what was computed.

Over few places some channels differ little, batch norm divides by their small deviation, and float32 moves the
derivative in front of it far more than the last digit: the client's own numbers are off from exact arithmetic, and
these are the ones that it sends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import BatchNormMode
from torch import Tensor

Cases = Callable[..., Any]


def _derivatives(case: Any, dtype: torch.dtype) -> Mapping[str, Tensor]:
    """Of the loss by each value, computed in this type."""
    values = {case.graph.images: case.images.to(dtype).requires_grad_()}
    for node in case.graph.nodes:
        tensors = case.graph.tensors_of(node, values[case.graph.images])
        values[node.name] = node.kind.forward([values[name] for name in node.inputs], tensors)
    loss = F.cross_entropy(values[case.graph.output], torch.tensor([0]))
    found = torch.autograd.grad(loss, list(values.values()))
    return {name: one.double() for name, one in zip(values, found, strict=True)}


def _most(case: Any, derivatives: Mapping[str, Tensor]) -> float:
    """The largest error of a derivative that is known, over the stated one or the rounding of float32."""
    found = case.derived().knowledge.arriving
    assert found
    ratios = [
        float((one.values - derivatives[name]).norm() / derivatives[name].norm()) / max(float(one.error), 2e-7)
        for name, one in found.items()
        if one.complete
    ]
    return max(ratios)


@pytest.mark.parametrize("seed", [0, 1])
def test_derivatives_are_those_that_the_client_computed(
    residual_case: Cases, residual_network: Cases, seed: int
) -> None:
    model = residual_network(seed, normed_skips=True)
    case = residual_case(1, seed, model, BatchNormMode.TRAIN_PRIVATE)
    assert _most(case, _derivatives(case, torch.float32)) < 10


def test_of_a_client_in_float64_they_are_the_exact_ones(residual_case: Cases, residual_network: Cases) -> None:
    case = residual_case(1, 0, residual_network(0, normed_skips=True), BatchNormMode.TRAIN_PRIVATE, torch.float64)
    assert _most(case, _derivatives(case, torch.float64)) < 10

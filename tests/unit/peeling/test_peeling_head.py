"""The features behind the final linear layer: right, or refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture.labels.final_layer import FinalLayer
from gradinversion.peeling.head.fixed_point import peel_head
from gradinversion.peeling.head.head import Head
from gradinversion.peeling.layers import worst
from torch import Tensor

_TOLERANCE = 1e-3  # of PeelingConfig


def _layer(weight: Tensor, bias: Tensor | None, weight_gradient: Tensor, bias_gradient: Tensor | None) -> FinalLayer:
    return FinalLayer(
        weight.detach().double(),
        torch.zeros(len(weight)).double() if bias is None else bias.detach().double(),
        weight_gradient.double(),
        None if bias_gradient is None else bias_gradient.double(),
        torch.zeros(1, weight.shape[1]).double(),
        non_negative=True,
        stored=weight_gradient.dtype,
    )


def _peel(
    batch: int,
    classes: int,
    *,
    bias: bool = True,
    scale: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    labels: Tensor | None = None,
    factor: float = 1.0,
    noise: float = 0.0,
) -> tuple[Head, Tensor, Tensor]:
    """What ``peel_head`` finds, the true features, and the true derivative by them.

    Larger ``scale``, surer network. The gradient is multiplied by ``factor`` before noise of a relative size is added.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, 64, generator=generator, dtype=torch.float64) / 8
    shift = 0.1 * torch.randn(classes, generator=generator, dtype=torch.float64) if bias else None
    features = scale * torch.randn(batch, 64, generator=generator, dtype=torch.float64).clamp_min(0)
    labels = torch.arange(batch) if labels is None else labels
    leaves = [t.requires_grad_() for t in (features, weight, shift) if t is not None]
    loss = F.cross_entropy(F.linear(features, weight, shift), labels)
    cotangent, *gradients = torch.autograd.grad(loss, leaves)
    sent = [factor * gradient for gradient in gradients]
    sent = [g + noise * g.norm() / g.numel() ** 0.5 * torch.randn(g.shape, generator=generator) for g in sent]
    sent = [g.to(dtype) for g in sent]
    layer = _layer(weight.to(dtype), None if shift is None else shift.to(dtype), sent[0], sent[1] if bias else None)
    head = peel_head(layer, labels)
    return head, features.detach(), cotangent


def _worst(found: Tensor, truth: Tensor) -> float:
    return float(((found - truth).norm(dim=1) / truth.norm(dim=1)).max())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("batch", "classes"), [(1, 3), (1, 10), (3, 10), (8, 10), (16, 100), (64, 100)])
def test_features_and_cotangent_are_the_true_ones(batch: int, classes: int, bias: bool) -> None:
    head, features, cotangent = _peel(batch, classes, bias=bias)
    assert head.error < 1e-5
    assert _worst(head.features, features) < 1e-5
    assert _worst(head.cotangent, cotangent) < 1e-5


@pytest.mark.parametrize(("batch", "classes"), [(1, 2), (2, 3), (9, 10), (99, 100)])
def test_a_batch_of_one_less_than_the_classes_needs_the_bias(batch: int, classes: int) -> None:
    # Any probabilities explain the weight gradient then, and the softmax alone can have several solutions.
    head, features, _ = _peel(batch, classes, bias=True, scale=0.3)
    assert head.error < _TOLERANCE
    assert _worst(head.features, features) < 1e-5
    assert _peel(batch, classes, bias=False, scale=0.3)[0].error == float("inf")


def test_labels_in_any_order() -> None:
    head, features, _ = _peel(3, 10, labels=torch.tensor([7, 0, 4]))
    assert _worst(head.features, features) < 1e-5


def test_float64_gradients_are_used_to_their_precision() -> None:
    head, features, _ = _peel(4, 10, dtype=torch.float64)
    assert _worst(head.features, features) < 1e-9


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0])
@pytest.mark.parametrize(("batch", "classes"), [(1, 2), (1, 3), (2, 3), (3, 5), (4, 10), (9, 10)])
def test_features_of_a_sure_network_are_right_or_refused(batch: int, classes: int, scale: float, bias: bool) -> None:
    for seed in range(2):
        head, features, _ = _peel(batch, classes, bias=bias, scale=scale, seed=seed)
        assert head.error > _TOLERANCE or _worst(head.features, features) < 3 * _TOLERANCE


def test_without_a_bias_a_second_solution_is_not_taken_for_the_first() -> None:
    # Probability on the label and one other class alone: the size of that image's row is anybody's guess.
    for seed in range(40):
        head, features, _ = _peel(3, 5, bias=False, scale=8.0, seed=seed)
        assert head.error > _TOLERANCE or _worst(head.features, features) < 3 * _TOLERANCE


def test_an_error_that_is_not_a_number_is_the_worst_of_all() -> None:
    nan, inf = float("nan"), float("inf")
    assert worst(1e-3, 2e-3) == 2e-3
    assert worst(nan, 1.0) == worst(1.0, nan) == worst(0.0, 1.0, nan) == inf


@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_bias_gradient_settles_a_single_image_however_sure_the_network(classes: int, scale: float) -> None:
    for seed in range(4):
        head, features, cotangent = _peel(1, classes, scale=scale, seed=seed, labels=torch.tensor([1]))
        assert head.error < _TOLERANCE
        assert _worst(head.features, features) < 1e-4
        assert _worst(head.cotangent, cotangent) < 1e-4


@pytest.mark.parametrize("noise", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1])
@pytest.mark.parametrize("batch", [1, 4, 9])
def test_the_estimated_error_follows_the_noise(batch: int, noise: float) -> None:
    head, features, _ = _peel(batch, 10, noise=noise)
    error = _worst(head.features, features)
    assert 0.1 * error < head.error
    assert noise < 0.01 or head.error > _TOLERANCE


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 3.0])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_clipped_or_scaled_gradient_is_refused(batch: int, factor: float) -> None:
    assert _peel(batch, 10, factor=factor)[0].error > _TOLERANCE


@pytest.mark.parametrize("labels", [[0, 0], [1, 1, 2], [5, 3, 5, 5]])
def test_repeated_labels_are_refused(labels: list[int]) -> None:
    assert _peel(len(labels), 10, labels=torch.tensor(labels))[0].error > _TOLERANCE


def test_wrong_labels_are_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(10, 64, generator=generator) / 8
    features = torch.randn(3, 64, generator=generator)
    weight.requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(features @ weight.T, torch.tensor([0, 1, 2])), weight)
    for wrong in ([0, 1, 3], [4, 5, 6]):
        assert peel_head(_layer(weight, None, gradient, None), torch.tensor(wrong)).error > _TOLERANCE


@pytest.mark.parametrize(("batch", "classes"), [(4, 4), (5, 4), (2, 2)])
def test_as_many_images_as_classes_are_refused(batch: int, classes: int) -> None:
    assert _peel(batch, classes, labels=torch.arange(batch) % classes)[0].error == float("inf")


@pytest.mark.parametrize("bias", [True, False])
def test_a_zero_gradient_is_refused(bias: bool) -> None:
    zeros = torch.zeros(10) if bias else None
    head = peel_head(_layer(torch.randn(10, 8), zeros, torch.zeros(10, 8), zeros), torch.tensor([0, 1]))
    assert not head.error <= _TOLERANCE

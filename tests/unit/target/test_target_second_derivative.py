"""The derivative of a gradient by the images, where torch has none of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.agents import Objective, ObjectiveConfig
from gradinversion.capture import BatchNormMode, LocalTraining, ModelError, capture_gradient, load_model, train_locally
from gradinversion.peeling import peel
from gradinversion.target import Target
from gradinversion.target.second_derivative import (
    hard_sigmoid,
    needs_composing,
    require_second_derivative,
    twice_differentiable,
)
from torch import Tensor, nn

IMAGES, LABELS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)), torch.tensor([3, 7])


class Net(nn.Module):
    """Two convolutions with a function between; tanh ends what can be peeled."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Linear(128, 10)
        self.between = between

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(self.between(8 * self.first(images))).tanh().flatten(1))
        return logits


HARD: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.Hardsigmoid(),
    "module in place": nn.Hardsigmoid(inplace=True),
    "function": F.hardsigmoid,
    "function in place": lambda x: F.hardsigmoid(x, inplace=True),
    "operation": torch.ops.aten.hardsigmoid,
    "operation by name": torch.ops.aten.hardsigmoid.default,
}


def test_the_composed_form_has_the_value_and_the_derivative_of_torchs_own() -> None:
    values = torch.cat([torch.linspace(-5, 5, 2001), torch.tensor([-3.0, 0.0, 3.0, 1e6, -1e6])])
    found = []
    for function in (hard_sigmoid, F.hardsigmoid):
        at = values.clone().requires_grad_()
        result = function(at)
        (derivative,) = torch.autograd.grad(result.sum(), at)
        found.append((result.detach(), derivative))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-7)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-7)


@pytest.mark.parametrize("between", HARD.values(), ids=HARD)
def test_every_way_to_call_a_hard_sigmoid_has_a_second_derivative(between: Callable[[Tensor], Tensor]) -> None:
    model, plain = Net(between), Net(hard_sigmoid)
    update = capture_gradient(model, IMAGES, LABELS)
    expected = capture_gradient(plain, IMAGES, LABELS)
    for name, gradient in update.gradients.items():
        assert torch.allclose(gradient, expected.gradients[name], atol=1e-6), name
    assert needs_composing(model, update)
    require_second_derivative(model, update, None)
    found = []
    for one in (model, plain):
        objective = Objective(Target(expected, one, LABELS), ObjectiveConfig(adaptive=False))
        pixels = torch.zeros(2, 3, 16, 16, requires_grad=True)
        (derivative,) = torch.autograd.grad(objective.terms(pixels)["total"], pixels)
        found.append(derivative)
        assert objective.gradient_loss(expected.normalisation.apply(IMAGES)) < 1e-5
    assert torch.allclose(found[0], found[1], rtol=1e-3, atol=1e-5 * float(found[1].abs().max()))


def test_the_second_derivative_is_that_of_finite_differences() -> None:
    model = Net(nn.Hardsigmoid()).double()
    images = torch.randn(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def squared(images: Tensor) -> Tensor:
        with twice_differentiable(model, BatchNormMode.EVAL, composed=True):
            loss = F.cross_entropy(model(images), torch.tensor([3]))
            found = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        return torch.stack([gradient.square().sum() for gradient in found]).sum()

    at = images.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(squared(at), at)
    direction = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    step = 1e-6 * direction
    numeric = (squared(images + step) - squared(images - step)).detach() / 2e-6
    assert float((derivative * direction).sum()) == pytest.approx(float(numeric), rel=1e-4)


@pytest.mark.parametrize(
    "activation",
    [
        nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid, nn.Mish,
        nn.PReLU, nn.ReLU, nn.ReLU6, nn.RReLU, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign,
        nn.Tanh, nn.Tanhshrink,
    ],
)  # fmt: skip
def test_the_other_activations_of_torch_need_nothing(activation: type[nn.Module]) -> None:
    model = Net(activation()).eval()
    update = capture_gradient(model, IMAGES, LABELS)
    assert not needs_composing(model, update)
    require_second_derivative(model, update, None)
    objective = Objective(Target(update, model, LABELS), ObjectiveConfig(adaptive=False))
    pixels = torch.full((2, 3, 16, 16), 0.1, requires_grad=True)
    (derivative,) = torch.autograd.grad(objective.terms(pixels)["total"], pixels)
    assert bool(derivative.any())


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        result: Tensor = cotangent * values.cos()
        return result


def test_a_gradient_without_a_derivative_is_refused_in_a_sentence() -> None:
    model = Net(Once.apply)
    update = capture_gradient(model, IMAGES, LABELS)
    with pytest.raises(ModelError, match=r"the model's gradient has no derivative by the images.*once_differentiable"):
        require_second_derivative(model, update, None)


class Behind(nn.Module):
    """The function lies in the head, which peeling explains."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), nn.Flatten()), nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.first(images))
        return logits


def test_what_lies_behind_an_anchor_need_not_be_differentiated() -> None:
    model = Behind()
    update = capture_gradient(model, IMAGES, LABELS)
    anchor = peel(update, model, LABELS).anchor
    assert anchor is not None
    assert anchor.module == "head"
    model.head.register_forward_hook(lambda module, inputs, output: Once.apply(output))
    with pytest.raises(ModelError, match="no derivative"):
        require_second_derivative(model, update, None)
    require_second_derivative(model, update, anchor)


def test_a_fixed_batch_size_is_asked_for_with_the_batch_of_a_step() -> None:
    def four(images: Tensor) -> Tensor:
        return images.view(4, 8, 8, 8)

    model = Net(four)
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8)
    update = train_locally(model, images, labels, local=LocalTraining(0.1, batch_size=4))
    require_second_derivative(model, update, None)
    objective = Objective(Target(update, model, labels), ObjectiveConfig())
    assert objective.gradient_loss(update.normalisation.apply(images)) < 1e-4
    with pytest.raises(ModelError, match="cannot take a batch of 2 images"):
        require_second_derivative(model, capture_gradient(Net(nn.Tanh()), IMAGES, LABELS), None)


@pytest.mark.parametrize("mode", list(BatchNormMode))
def test_mobilenet_v3_is_differentiated_in_every_mode(mode: BatchNormMode) -> None:
    model = load_model("mobilenet_v3_small", 10, 64)
    images = torch.rand(2, 3, 64, 64)
    update = capture_gradient(model, images, LABELS, batch_norm=mode)
    require_second_derivative(model, update, None)
    objective = Objective(Target(update, model, LABELS), ObjectiveConfig())
    pixels = torch.zeros(2, 3, 64, 64, requires_grad=True)
    (derivative,) = torch.autograd.grad(objective.terms(pixels)["total"], pixels)
    assert bool(torch.isfinite(derivative).all())
    assert objective.gradient_loss(update.normalisation.apply(images)) < 1e-3

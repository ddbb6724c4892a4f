"""Models as people have them, as far as the first step: attacked, or refused before any agent begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from gradinversion.agents import Objective, ObjectiveConfig
from gradinversion.capture import LocalTraining, ModelError, capture_gradient, train_locally, weight_hash
from gradinversion.capture.decisive import decisive_facts
from gradinversion.coordinator import AttackConfig
from gradinversion.target.preparation import prepare
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IMAGES, LABELS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(4)), torch.tensor([3, 7])
CONFIG = AttackConfig(labels="3,7")


def layers(activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), activation(), nn.Flatten(), nn.Linear(128, 10)).eval()


class Own(nn.Module):
    """Layers of which a model of somebody's own is made."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = layers()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


class InPlace(Own):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.mul_(2).sub_(0.1))


class FixedBatch(Own):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.view(2, 3, 16, 16))


class KeepsActivations(Own):
    def forward(self, images: Tensor) -> Tensor:
        self.features = self.layers[:2](images)
        logits: Tensor = self.layers[2:](self.features)
        return logits


class Reentrant(Own):
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = checkpoint(self.layers, images.requires_grad_(), use_reentrant=True)
        return logits


class Reads(Own):
    def __init__(self) -> None:
        super().__init__()
        self.source: Iterator[int] = (number for number in range(3))


def normed(make: Callable[..., object]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = layers()
        make(model[0])
        return model

    return build


def compiled() -> nn.Module:
    return cast(nn.Module, torch.compile(layers()))


ATTACKED: dict[str, Callable[[], nn.Module]] = {
    "compiled": compiled,
    "DataParallel": lambda: nn.DataParallel(layers()),
    "in place": InPlace,
    "fixed batch": FixedBatch,
    "keeps activations": KeepsActivations,
    "hard sigmoid": lambda: layers(nn.Hardsigmoid),
    "hard swish": lambda: layers(nn.Hardswish),
    "legacy spectral_norm": normed(torch.nn.utils.spectral_norm),
    "weight_norm": normed(nn.utils.parametrizations.weight_norm),
    "spectral_norm": normed(nn.utils.parametrizations.spectral_norm),
}


@pytest.mark.parametrize("peeled", [True, False])
@pytest.mark.parametrize("make", ATTACKED.values(), ids=ATTACKED)
def test_the_private_images_have_no_loss_and_every_other_batch_has_a_way_down(
    make: Callable[[], nn.Module], peeled: bool
) -> None:
    model = make()
    update = capture_gradient(model, IMAGES, LABELS)
    model(IMAGES.clone())  # whatever it keeps of a pass, it keeps now
    target = prepare(update, model, CONFIG.request).target
    if not peeled:
        target.__dict__["anchor"] = None
    objective = Objective(target, ObjectiveConfig())
    assert objective.gradient_loss(update.normalisation.apply(IMAGES)) < 1e-5
    pixels = torch.zeros(2, 3, 16, 16, requires_grad=True)
    (derivative,) = torch.autograd.grad(objective.terms(pixels)["total"], pixels)
    assert bool(derivative.any())
    assert bool(torch.isfinite(derivative).all())


@pytest.mark.parametrize("make", [InPlace, FixedBatch, KeepsActivations])
def test_a_weight_delta_of_such_a_model_is_attacked_too(make: Callable[[], nn.Module]) -> None:
    images, labels = torch.cat([IMAGES, 1 - IMAGES]), torch.tensor([3, 7, 1, 2])
    update = train_locally(make(), images, labels, local=LocalTraining(0.1, batch_size=2))
    target = prepare(update, make(), AttackConfig(labels="3,7,1,2").request).target
    objective = Objective(target, ObjectiveConfig())
    assert objective.gradient_loss(update.normalisation.apply(images)) < 1e-4
    pixels = torch.zeros(4, 3, 16, 16, requires_grad=True)
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


class OnceDifferentiable(Own):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(Once.apply(self.layers[0](images)).repeat(1, 1, 4, 4)[:, :3])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (OnceDifferentiable, "no derivative by the images, along which the attack descends"),
        (Reads, r"its attribute 'source' \(a generator\)"),
    ],
)
def test_what_cannot_be_attacked_is_refused_in_a_sentence(make: Callable[[], nn.Module], told: str) -> None:
    model = make()
    update = capture_gradient(model, IMAGES, LABELS)
    with pytest.raises(ModelError, match=told):
        prepare(update, model, CONFIG.request)


def test_a_delta_of_reentrant_checkpoints_is_refused_where_the_client_could_train() -> None:
    update = train_locally(Reentrant(), IMAGES, LABELS, local=LocalTraining(0.1))
    with pytest.raises(ModelError, match="use_reentrant=False, which makes the same gradient"):
        prepare(update, Reentrant(), CONFIG.request)


def test_priors_alone_need_no_derivative_of_the_gradient() -> None:
    model = OnceDifferentiable()
    update = capture_gradient(model, IMAGES, LABELS)
    config = AttackConfig(labels="3,7", objective=ObjectiveConfig(gradient_weight=0.0))
    assert prepare(update, model, config.request).target.anchor is None


@pytest.mark.parametrize("make", [FixedBatch, normed(torch.nn.utils.spectral_norm), InPlace, KeepsActivations])
def test_a_model_that_draws_nothing_in_training_is_not_suspected_of_it(make: Callable[[], nn.Module]) -> None:
    model = make()
    update = capture_gradient(model, IMAGES, LABELS)
    before = weight_hash(model)
    assert "dropout" not in decisive_facts(update, model)
    assert weight_hash(model) == before
    model.add_module("noise", nn.Dropout())
    handle = model.register_forward_hook(lambda module, inputs, output: module.get_submodule("noise")(output))
    assert "dropout" in decisive_facts(update, model)
    handle.remove()

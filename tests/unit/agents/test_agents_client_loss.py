"""The match is with the client's loss: at the private images nothing is left, whatever the loss is."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from gradinversion.agents import Objective, ObjectiveConfig
from gradinversion.capture import IMAGENET, LocalTraining, Penalty, capture_gradient, capture_weight_delta, read, told
from gradinversion.capture.loss_recognition import loss_facts
from gradinversion.target import Target
from gradinversion.target.adaptation import Adaptation
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def _model(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.Softplus(), nn.Flatten(), nn.Linear(128, outputs)]
    return nn.Sequential(*layers).eval()


def _one_logit(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs[:, 0], labels.float())


def _one_hot(loss: Loss) -> Loss:
    return lambda outputs, labels: loss(outputs, F.one_hot(labels, outputs.shape[1]).float())


@pytest.mark.parametrize(
    ("loss", "outputs"),
    [
        (_one_logit, 1),
        (_one_hot(F.binary_cross_entropy_with_logits), 10),
        (_one_hot(F.mse_loss), 10),
        (_one_hot(lambda z, y: F.mse_loss(z, y, reduction="sum")), 10),
        (nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum"), 10),
        (lambda z, y: 1024 * F.cross_entropy(z, y), 10),
    ],
)
def test_the_private_images_cost_nothing(loss: Loss, outputs: int) -> None:
    model, images, labels = _model(outputs), torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 1])
    update = capture_gradient(model, images, labels, loss=loss)
    objective = Objective(Target(update, model, labels), ObjectiveConfig())
    truth = update.normalisation.apply(images)
    assert objective.gradient_loss(truth) < 1e-5
    assert objective.gradient_loss(truth + 0.3) > 1e-2
    assert not any("noise" in message for message in objective.messages)


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum")])
@pytest.mark.parametrize("penalty", [Penalty(), Penalty(l2=1e-2), Penalty(l1=1e-3)])
def test_local_steps_are_retraced_with_the_loss_and_its_penalty(loss: Loss, penalty: Penalty) -> None:
    model, images, labels = _model(10), torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    local = LocalTraining(0.02, epochs=2, batch_size=2, momentum=0.5)
    after, truth = copy.deepcopy(model), IMAGENET.apply(images)
    optimiser = torch.optim.SGD(after.parameters(), lr=0.02, momentum=0.5)
    for batch in (slice(0, 2), slice(2, 4)) * 2:
        optimiser.zero_grad()
        value = loss(after(truth[batch]), labels[batch])
        for parameter in after.parameters():
            value = value + penalty.l2 / 2 * parameter.square().sum() + penalty.l1 * parameter.abs().sum()
        value.backward()
        optimiser.step()
    stated = {**(loss_facts(loss) or {}), "penalty": told(penalty)}
    update = capture_weight_delta(
        model, after, image_count=4, image_shape=(3, 8, 8), local=local, normalisation=IMAGENET, stated=stated
    )
    assert Objective(Target(update, model, labels), ObjectiveConfig()).gradient_loss(truth) < 1e-3


def test_along_a_penalty_that_was_read_nothing_is_compared() -> None:
    """Whatever the layers are that it spares."""
    model, images, labels = _model(10), torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])
    update = capture_gradient(model, images, labels)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    half = {name: g + (0.1 * weights[name] if name.startswith("3") else 0) for name, g in update.gradients.items()}
    sent = type(update)(half, update.image_shape, update.model_id, update.weight_hash, update.facts)
    truth = update.normalisation.apply(images)
    for fact, least, most in ((told(Penalty(0.1)), 1e-2, 10), (read(Penalty(0.1), "a test"), 0, 1e-5)):
        stated = sent.stating(penalty=fact)
        assert least <= Objective(Target(stated, model, labels), ObjectiveConfig()).gradient_loss(truth) < most


def test_directions_are_left_out_of_both_sides() -> None:
    direction = torch.tensor([0.6, 0.8])
    adaptation = Adaptation(unmatched={"a": (direction,)})
    found, target = torch.tensor([1.0, 1.0]), torch.tensor([5.0, 2.0])
    (ours, other), (theirs, left) = adaptation.matched(["a", "b"], [found, found], [target, target])
    assert float(ours @ direction) == pytest.approx(0, abs=1e-6)
    assert float(theirs @ direction) == pytest.approx(0, abs=1e-6)
    assert torch.equal(other, found)
    assert torch.equal(left, target)

"""Which loss a client's callable is: by identity, else by its derivative, never by its name."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import (
    CapturedUpdate,
    ClientLoss,
    LocalTraining,
    Penalty,
    Reduction,
    as_gradient,
    capture_gradient,
    told,
    train_locally,
)
from gradinversion.capture.losses import KNOWN_LOSSES
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def _model(outputs: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, outputs)).eval()


def _capture(loss: Loss, outputs: int = 5, labels: tuple[int, ...] = (1, 3, 3)) -> CapturedUpdate:
    images = torch.rand(len(labels), 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return capture_gradient(_model(outputs), images, torch.tensor(labels), loss=loss)


def _focal(logits: Tensor, labels: Tensor) -> Tensor:
    losses = F.cross_entropy(logits, labels, reduction="none")
    return ((1 - (-losses).exp()).square() * losses).mean()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Foreign, whatever it is called."""
    return _focal(logits, labels)


class _Halved(nn.CrossEntropyLoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return 0.5 * super().forward(input, target)


def _one_hot_mse(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(outputs, F.one_hot(labels, 5).float(), reduction="sum")


WEIGHTS = torch.tensor([1.0, 2.0, 1.0, 4.0, 1.0])


@pytest.mark.parametrize(
    ("loss", "name", "reduction", "scale", "smoothing"),
    [
        (F.cross_entropy, "cross_entropy", "mean", 1, 0),
        (nn.CrossEntropyLoss(), "cross_entropy", "mean", 1, 0),
        (nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1), "cross_entropy", "sum", 1, 0.1),
        (functools.partial(F.cross_entropy, label_smoothing=0.2), "cross_entropy", "mean", 1, 0.2),
        (lambda z, y: 65536.0 * F.cross_entropy(z, y), "cross_entropy", "mean", 65536, 0),
        (lambda z, y: F.cross_entropy(z, y, reduction="sum"), "cross_entropy", "sum", 1, 0),
        (lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1) / 4, "cross_entropy", "mean", 0.25, 0.1),
        (lambda z, y: F.nll_loss(z.log_softmax(1), y), "cross_entropy", "mean", 1, 0),
        (_Halved(), "cross_entropy", "mean", 0.5, 0),
        (nn.CrossEntropyLoss(ignore_index=0), "cross_entropy", "mean", 1, 0),
        (nn.CrossEntropyLoss(weight=WEIGHTS), "foreign: CrossEntropyLoss", "mean", 1, 0),
        (_focal, "foreign: _focal", "mean", 1, 0),
        (cross_entropy, "foreign: cross_entropy", "mean", 1, 0),
        (_one_hot_mse, "mse_loss", "sum", 1, 0),
        (
            lambda z, y: F.binary_cross_entropy_with_logits(z, F.one_hot(y, 5).float()),
            "binary_cross_entropy_with_logits",
            "mean",
            1,
            0,
        ),
        (lambda z, y: F.l1_loss(z, F.one_hot(y, 5).float()), "foreign: <lambda>", "mean", 1, 0),
    ],
)
def test_a_callable_is_recorded_as_what_it_does(
    loss: Loss, name: str, reduction: str, scale: float, smoothing: float
) -> None:
    facts = _capture(loss).facts
    assert facts.loss.value == name
    assert facts.reduction.value == reduction
    assert facts.loss_scale.value == pytest.approx(scale, rel=1e-4)
    assert facts.label_smoothing.value == pytest.approx(smoothing, abs=1e-3)
    assert not facts.loss.assumed


def test_one_logit_is_compared_with_the_label_as_a_number() -> None:
    update = _capture(lambda z, y: F.binary_cross_entropy_with_logits(z[:, 0], y.float()), 1, (0, 1, 1))
    assert update.loss == "binary_cross_entropy_with_logits"
    assert update.facts.reduction.value is Reduction.MEAN


def test_a_single_image_tells_no_factor() -> None:
    """Its derivative is that of many losses but for a number."""
    assert _capture(_focal, labels=(2,)).loss == "foreign: _focal"
    assert _capture(lambda z, y: F.cross_entropy(z, y), labels=(2,)).loss == "cross_entropy"


def test_local_training_records_its_loss() -> None:
    images, labels = torch.rand(4, 3, 4, 4), torch.tensor([0, 1, 2, 3])
    update = train_locally(
        _model(),
        images,
        labels,
        local=LocalTraining(0.01, epochs=1, batch_size=2),
        loss=nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum"),
    )
    assert update.facts.label_smoothing.value == pytest.approx(0.1)
    assert update.facts.reduction.value is Reduction.SUM


@pytest.mark.parametrize("name", KNOWN_LOSSES)
@pytest.mark.parametrize("reduction", list(Reduction))
def test_every_known_loss_is_that_of_torch(name: str, reduction: Reduction) -> None:
    outputs, labels = torch.rand(3, 5), torch.tensor([1, 3, 3])
    one_hot = F.one_hot(labels, 5).float()
    kind = str(reduction)
    expected = {
        "cross_entropy": lambda: F.cross_entropy(outputs, labels, reduction=kind),
        "nll_loss": lambda: F.nll_loss(outputs, labels, reduction=kind),
        "binary_cross_entropy_with_logits": lambda: F.binary_cross_entropy_with_logits(
            outputs, one_hot, reduction=kind
        ),
        "binary_cross_entropy": lambda: F.binary_cross_entropy(outputs, one_hot, reduction=kind),
        "mse_loss": lambda: F.mse_loss(outputs, one_hot, reduction=kind),
        "mse_of_softmax": lambda: F.mse_loss(outputs.softmax(1), one_hot, reduction=kind),
    }[name]()
    assert float(ClientLoss(name, reduction)(outputs, labels)) == pytest.approx(float(expected), rel=1e-5)
    weighted = ClientLoss(name, reduction, scale=3.0)(outputs, labels, torch.ones(3))
    assert float(weighted) == pytest.approx(3 * float(expected), rel=1e-5)


@pytest.mark.parametrize("spared", [(), ("3.bias",)])
def test_a_gradient_is_brought_to_that_of_the_mean_without_its_penalty(spared: tuple[str, ...]) -> None:
    model, plain = _model(), _capture(F.cross_entropy)
    penalty = Penalty(l2=1e-2, l1=1e-3, spared=spared)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    sent = _capture(nn.CrossEntropyLoss(reduction="sum"))
    with_it = {name: g + penalty.term(name, weights[name]) for name, g in sent.gradients.items()}
    update = CapturedUpdate(
        with_it, sent.image_shape, sent.model_id, sent.weight_hash, sent.facts.stating(penalty=told(penalty))
    )
    found = as_gradient(update, model)
    for name, gradient in plain.gradients.items():
        assert torch.allclose(found.gradients[name], gradient, atol=1e-6)
    assert found.facts.penalty.value == Penalty()
    assert found.facts.reduction.value is Reduction.MEAN
    assert as_gradient(found, model) is found


def test_the_penalty_and_its_exceptions_survive_the_file(tmp_path: object) -> None:
    update = _capture(F.cross_entropy).stating(penalty=told(Penalty(1e-4, 1e-5, ("3.bias",))))
    path = f"{tmp_path}/update.safetensors"
    update.save(path)
    assert CapturedUpdate.load(path).facts == update.facts

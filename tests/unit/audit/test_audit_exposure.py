"""Each image's loss and share of the gradient norm, and what the report says of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from gradinversion.audit import Control, Exposure, evaluate, measure_exposure
from gradinversion.audit.exposure import rank_correlation
from gradinversion.audit.risk import risk_sentences
from gradinversion.capture import PrivateBatch, capture_gradient, load_images, load_model, told
from gradinversion.coordinator import Reconstruction
from scipy.stats import spearmanr
from torch import nn

Attack = Callable[..., tuple[Reconstruction, PrivateBatch]]


@pytest.fixture(scope="module")
def private() -> PrivateBatch:
    images, names = load_images("photos", 4, 32)
    return PrivateBatch(images, torch.tensor([3, 1, 4, 1]), names)


@pytest.mark.parametrize("mode", ["eval", "train_shared", "train_private"])
def test_the_images_gradients_add_up_to_the_update(private: PrivateBatch, mode: str) -> None:
    model = load_model("convnet", seed=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    update = capture_gradient(model, private.images, private.labels, batch_norm=mode)
    exposure = measure_exposure(model, private, update)
    single = [capture_gradient(model, private.images[:1], private.labels[:1])] if mode == "eval" else []
    for one in single:
        norm = torch.cat([g.flatten() for g in one.gradients.values()]).norm()
        assert exposure.norms[0] == pytest.approx(float(norm), rel=1e-4)
    # The update is the mean of the images' gradients, so its norm is at most the mean of theirs.
    total = torch.cat([g.flatten() for g in update.gradients.values()]).norm()
    assert float(total) <= sum(exposure.norms) / 4 * (1 + 1e-5)
    assert sum(exposure.shares) == pytest.approx(1.0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_losses_are_those_of_the_labels(private: PrivateBatch) -> None:
    model = load_model("convnet", seed=0)
    update = capture_gradient(model, private.images, private.labels)
    with torch.no_grad():
        logits = model(update.normalisation.apply(private.images))
    direct = F.cross_entropy(logits, private.labels, reduction="none")
    assert measure_exposure(model, private, update).losses == pytest.approx(direct.tolist(), rel=1e-4)


def test_an_image_that_the_network_knows_weighs_less(private: PrivateBatch) -> None:
    model = load_model("convnet", seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    known = dataclasses.replace(private, labels=torch.tensor([0, 1, 2, 3]))
    update = capture_gradient(model, known.images, known.labels)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(update.normalisation.apply(known.images)), known.labels).backward()
        optimizer.step()
    model.zero_grad()
    wrong = dataclasses.replace(known, labels=torch.tensor([0, 1, 2, 7]))
    exposure = measure_exposure(model, wrong, update)
    assert exposure.losses[3] > 10 * max(exposure.losses[:3])
    assert exposure.shares[3] > 0.6


def test_frozen_parameters_do_not_count(private: PrivateBatch) -> None:
    model = load_model("convnet", seed=0)
    whole = measure_exposure(model, private, capture_gradient(model, private.images, private.labels))
    for parameter in list(model.parameters())[:-2]:
        parameter.requires_grad_(False)
    update = capture_gradient(model, private.images, private.labels)
    assert all(a < b for a, b in zip(measure_exposure(model, private, update).norms, whole.norms, strict=True))


def test_another_loss_is_refused(private: PrivateBatch) -> None:
    model = load_model("convnet", seed=0)
    update = capture_gradient(model, private.images, private.labels).stating(loss=told("mse_loss"))
    with pytest.raises(ValueError, match="mse_loss"):
        measure_exposure(model, private, update)


def test_no_gradient_at_all_is_shared_equally() -> None:
    assert Exposure((0.0, 0.0), (0.0, 0.0)).shares == (0.5, 0.5)


def test_rank_correlation_is_spearmans() -> None:
    one, other = [3.0, 1.0, 2.0, 5.0, 5.0], [1.0, 0.5, 7.0, 8.0, 2.0]
    assert rank_correlation(one, other) == pytest.approx(float(spearmanr(one, other)[0]))
    assert rank_correlation([1.0, 2.0], [1.0, 2.0]) is None
    assert rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert rank_correlation([1.0, float("nan"), 2.0, 3.0], [1.0, 2.0, 2.0, 3.0]) == pytest.approx(1.0)


def test_the_report_names_who_is_at_risk(attack: Attack) -> None:
    reconstruction, private = attack(batch=4, seeds=3, noise=0.02)
    images = reconstruction.images.clone()
    images[1:3] = 0.5
    partly = dataclasses.replace(reconstruction, images=images)
    exposure = Exposure((9.0, 0.01, 0.02, 4.0), (50.0, 0.5, 1.0, 20.0))
    report = evaluate(partly, private, exposure=exposure)
    assert [image.at_risk for image in report.images] == [True, False, False, True]
    first, weights, together = risk_sentences(report)
    assert first.startswith("2 of 4 images are at risk")
    assert "photo0.png (leaked, loss 9.00, 70%)" in first
    assert "Far more than their share of the gradient norm: photo0.png." in weights
    assert "Far less: photo1.png, photo2.png" in weights
    assert "share +" in together
    even = evaluate(partly, private, exposure=Exposure((2.3,) * 4, (1.0, 1.1, 1.0, 0.9)))
    assert "All images weigh about the same" in risk_sentences(even)[1]
    assert risk_sentences(evaluate(partly, private)) == []


def test_nobody_is_at_risk_where_a_control_does_as_well(attack: Attack) -> None:
    reconstruction, private = attack(batch=1, seeds=2)
    control = Control("no_gradient", reconstruction)
    report = evaluate(reconstruction, private, controls=(control,), exposure=Exposure((2.0,), (1.0,)))
    assert risk_sentences(report) == ["This attack made none of the images visible."]


def test_of_images_that_could_not_be_judged_nothing_is_claimed(attack: Attack) -> None:
    reconstruction, private = attack()
    measured = Exposure((1.0,) * 4, (1.0,) * 4)
    gone = dataclasses.replace(reconstruction, images=torch.full_like(private.images, torch.nan))
    sentences = risk_sentences(evaluate(gone, private, exposure=measured))
    assert sentences[0] == "Of 4 of 4 images nothing can be told."
    half = dataclasses.replace(private, images=private.images.clone())
    half.images[0] = 0.5
    noise, _ = attack(half, noise=0.7)
    assert risk_sentences(evaluate(noise, half, exposure=measured))[0] == (
        "This attack made none of the images visible. Of 1 of 4 images nothing can be told."
    )


def test_a_model_of_one_batch_size_has_the_same_exposure() -> None:
    class Fixed(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = super().forward(images.view(3, 3, 8, 8))
            return logits

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)]
    private = PrivateBatch(torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2]), ("a", "b", "c"))
    update = capture_gradient(nn.Sequential(*layers), private.images, private.labels)
    expected = measure_exposure(nn.Sequential(*layers), private, update)
    for model in (Fixed(*layers), nn.DataParallel(Fixed(*layers))):
        found = measure_exposure(model, private, update)
        assert found.losses == pytest.approx(expected.losses, rel=1e-5)
        assert found.norms == pytest.approx(expected.norms, rel=1e-5)

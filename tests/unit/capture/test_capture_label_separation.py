"""The batch taken apart into its images: exact with repeats and on trained models, and honest where it cannot be."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import (
    IMAGENET,
    CapturedUpdate,
    ClassCount,
    LabelError,
    RecoveredLabels,
    apply_defence,
    capture_gradient,
    load_model,
    recover_labels,
)
from gradinversion.capture.labels.final_layer import find_final_layer
from gradinversion.capture.labels.separation import separable, separate
from torch import Tensor, nn

CLASSES, BATCH = 40, 12


def draw_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tiny images scattered around one per class, classes drawn with replacement."""
    centres = torch.rand(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    noise = 0.15 * torch.randn(count, 3, 4, 4, generator=generator)
    return (centres[labels] + noise).clamp(0, 1), labels


def train(bias: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES, bias=bias))
    images, labels = draw_images(800, 1)
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(model(IMAGENET.apply(images)), labels).backward()
        optimiser.step()
    accuracy = float((model(IMAGENET.apply(images)).argmax(1) == labels).float().mean())
    assert accuracy > 0.9
    return model.eval()


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return train(bias=True)


def capture(model: nn.Module, seed: int, count: int = BATCH) -> tuple[CapturedUpdate, Tensor, Tensor]:
    images, labels = draw_images(count, seed)
    return capture_gradient(model, images, labels), images, labels


def hits(found: RecoveredLabels, labels: Tensor) -> int:
    return (Counter(found.labels.tolist()) & Counter(labels.tolist())).total()


@pytest.mark.parametrize("bias", [True, False])
def test_every_label_of_a_trained_model_is_found_with_repeats(bias: bool, trained: nn.Module) -> None:
    model = trained if bias else train(bias=False)
    by_counts = 0
    for seed in (2, 3):
        update, _, labels = capture(model, seed)
        found = recover_labels(update, model)
        assert found.method == "separation"
        assert found.labels.tolist() == labels.sort().values.tolist()
        assert float(found.confidence.min()) > 0.9
        assert found.warnings == ()
        by_counts += hits(recover_labels(update, model, "counts"), labels)
    assert by_counts < 2 * BATCH


def test_equal_labels_are_told_apart_by_their_features(trained: nn.Module) -> None:
    images, labels = draw_images(400, 7)
    chosen = torch.cat([(labels == k).nonzero().flatten()[:3] for k in (4, 9)])
    update = capture_gradient(trained, images[chosen], labels[chosen])
    found = separate(find_final_layer(update, trained), len(chosen))
    assert sorted(found.labels.tolist()) == [4, 4, 4, 9, 9, 9]
    true = IMAGENET.apply(images[chosen]).flatten(1).double()
    distances = torch.cdist(found.features, true) / true.norm(dim=1)
    assert sorted(distances.argmin(dim=1).tolist()) == list(range(6))
    assert float(distances.min(dim=1).values.max()) < 0.01


def test_what_the_model_is_sure_of_is_not_seen_and_it_is_said(trained: nn.Module) -> None:
    images, labels = draw_images(400, 8)
    sharp = nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES))
    with torch.no_grad():
        layer = trained.get_submodule("1")
        assert isinstance(layer, nn.Linear)
        sharp.get_parameter("1.weight").copy_(4 * layer.weight)
        sharp.get_parameter("1.bias").copy_(4 * layer.bias)
        logits = sharp(IMAGENET.apply(images)).sort(dim=1, descending=True).values
        order = (logits[:, 0] - logits[:, 1]).argsort()
    chosen = torch.cat([order[:6], order[-6:]])
    found = recover_labels(capture_gradient(sharp, images[chosen], labels[chosen]), sharp)
    assert len(found.labels) == BATCH
    assert any("could not be told apart" in line for line in found.warnings)
    left = Counter(labels[chosen].tolist())
    right: dict[bool, list[bool]] = {True: [], False: []}
    for label, confidence in zip(found.labels.tolist(), found.confidence.tolist(), strict=True):
        right[confidence >= 0.9].append(left[label] > 0)
        left[label] -= 1
    assert len(right[True]) >= 3
    assert all(right[True])
    assert len(right[False]) >= 3
    assert sum(right[False]) < len(right[False])


def test_noise_takes_the_confidence_away(trained: nn.Module) -> None:
    update, _, labels = capture(trained, 9)
    sure = []
    for strength in (1e-3, 1e-1, 10.0):
        noisy = apply_defence(update.gradients, "noise", strength, torch.Generator().manual_seed(0))
        found = recover_labels(replace(update, gradients=noisy), trained, "separation")
        assert len(found.labels) == BATCH
        assert any("changed after it was computed" in line for line in found.warnings)
        assert hits(found, labels) >= int((found.confidence > 0.9).sum())
        sure.append(int((found.confidence > 0.9).sum()))
    assert sure[0] >= 3
    assert sure[0] > sure[1] >= sure[2]
    assert sure[2] == 0


@pytest.mark.parametrize(("defence", "strength"), [("prune", 0.9), ("quantise", 4), ("clip", 1e-6)])
def test_defended_updates_give_a_result(defence: str, strength: float, trained: nn.Module) -> None:
    update, _, _ = capture(trained, 10)
    defended = replace(update, gradients=apply_defence(update.gradients, defence, strength))
    for method in ("auto", "separation"):
        found = recover_labels(defended, trained, method)
        assert found.labels.tolist() == sorted(found.labels.tolist())
        assert len(found.labels) == BATCH
        assert bool(((found.confidence >= 0) & (found.confidence <= 1)).all())


def test_zeros_are_guessed_without_confidence(trained: nn.Module) -> None:
    update, _, _ = capture(trained, 11)
    empty = replace(update, gradients={name: torch.zeros_like(g) for name, g in update.gradients.items()})
    found = recover_labels(empty, trained, "separation")
    assert found.confidence.tolist() == [0.0] * BATCH


def test_too_many_images_are_refused_by_name_and_counted_by_auto(trained: nn.Module) -> None:
    update, _, _ = capture(trained, 12, CLASSES // 2)
    assert not separable(find_final_layer(update, trained), CLASSES // 2)
    with pytest.raises(LabelError, match="more than twice as many classes as images"):
        recover_labels(update, trained, "separation")
    assert recover_labels(update, trained).method == "counts"


def test_random_weights_need_no_separation() -> None:
    model = load_model("convnet", 100)
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert recover_labels(capture_gradient(model, images, torch.tensor([1, 1, 1, 5, 5, 7])), model).method == "unmixing"
    assert recover_labels(capture_gradient(model, images, torch.arange(6)), model).method == "minimum"


def test_class_counts_doubt_what_their_entries_and_the_guesses_leave_open() -> None:
    labels = torch.tensor([2, 2, 5, 7])
    sure = RecoveredLabels(labels, torch.ones(4), "separation", "")
    assert sure.class_counts == (ClassCount(2, 2, 1.0), ClassCount(5, 1, 1.0), ClassCount(7, 1, 1.0))
    doubtful = RecoveredLabels(labels, torch.tensor([1.0, 1.0, 1.0, 0.0]), "separation", "").class_counts
    assert [found.count for found in doubtful] == [2, 1, 1]
    assert 0 < doubtful[0].confidence < doubtful[1].confidence < 1
    assert doubtful[2].confidence == 0

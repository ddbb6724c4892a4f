"""How deep peeling comes, and that what it brings back is true."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import apply_defence, capture_gradient
from gradinversion.capture.models import convnet
from gradinversion.peeling import Anchor, PeelingConfig, peel
from torch import Tensor, nn


def _trunk(*middle: nn.Module, last: nn.Module | None = None) -> nn.Sequential:
    """Convolution, ReLU, the given layers, an activation, flatten, linear; 8 px images, 10 classes."""
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), *middle, last or nn.ReLU(), nn.Flatten())
    width = layers.eval()(torch.zeros(1, 3, 8, 8)).shape[1]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def _small_convnet(width: int = 16) -> nn.Sequential:
    model = convnet(10, 16, width=width)
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):  # as after training: nothing at its initial value
            nn.init.normal_(layer.get_buffer("running_mean"), 0, 0.3)
            nn.init.uniform_(layer.get_buffer("running_var"), 0.5, 2)
            nn.init.normal_(layer.weight, 1, 0.5)
            nn.init.normal_(layer.bias, 0, 0.3)
    return model


def _peeled(case: Any) -> Anchor:
    peeling = peel(case.update, case.model, case.labels)
    assert peeling.anchor is not None, peeling.message
    return peeling.anchor


def test_one_image_peels_to_the_image_itself(capture: Callable[..., Any]) -> None:
    case = capture(_small_convnet(), [3], side=16)
    anchor = _peeled(case)
    assert anchor.module == "0"
    assert not anchor.one_sided
    torch.testing.assert_close(anchor.activations.float(), case.images, rtol=0, atol=1e-4)
    assert set(anchor.explained) == set(case.update.gradients)


def test_a_batch_peels_to_the_layer_that_its_gradient_is_long_enough_for(capture: Callable[..., Any]) -> None:
    case = capture(_small_convnet(width=8), [3, 1, 9, 0], side=16)
    anchor = _peeled(case)
    assert (anchor.module, anchor.one_sided) == ("5", True)
    assert max(case.errors(anchor)) < 1e-4
    assert case.model.get_submodule("5").__class__ is nn.ReLU
    assert {name.split(".")[0] for name in anchor.explained} == {"6", "7", "9", "10", "13"}


@pytest.mark.parametrize("mode", ["train_shared", "train_private"])
def test_in_the_train_modes_it_stops_behind_the_last_batch_norm(capture: Callable[..., Any], mode: str) -> None:
    case = capture(_small_convnet(), [3, 1, 9], side=16, batch_norm=mode)
    anchor = _peeled(case)
    assert anchor.module == "11"
    assert max(case.errors(anchor)) < 1e-4


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_in_train_mode_too_the_last_batch_norm_tells_which_units_were_open(
    capture: Callable[..., Any], seed: int
) -> None:
    torch.manual_seed(seed)
    case = capture(_small_convnet(width=8), [5, 0, 1], side=16, batch_norm="train_shared", seed=seed)
    random = torch.Generator().manual_seed(seed)
    sent = {
        name: g + 1e-4 * g.square().mean().sqrt() * torch.randn(g.shape, generator=random)
        for name, g in case.update.gradients.items()
    }
    with_it = _peeled(replace(case, update=replace(case.update, gradients=sent)))
    assert (with_it.module, with_it.one_sided) == ("11", True)
    assert max(case.errors(with_it)) < with_it.error < 1e-3
    frozen = {name: g for name, g in sent.items() if not name.startswith("10.")}
    without = peel(replace(case.update, gradients=frozen), case.model, case.labels).anchor
    assert without is not None
    assert without.error > 5 * with_it.error
    assert max(case.errors(without)) < 10 * without.error


# Each network with the module that one image peels to.
_KINDS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "plain": (lambda: _trunk(nn.Conv2d(8, 16, 3, 1, 1)), "0"),
    "no bias": (lambda: _trunk(nn.Conv2d(8, 16, 3, 1, 1, bias=False)), "0"),
    "strided": (lambda: _trunk(nn.Conv2d(8, 32, 3, 2, 1)), "0"),
    "strided with a rest": (lambda: _trunk(nn.Conv2d(8, 32, 4, 3, 1)), "0"),
    "pixels that no output sees": (lambda: _trunk(nn.Conv2d(8, 64, 1, 3)), "3"),
    "dilated": (lambda: _trunk(nn.Conv2d(8, 16, 3, 1, 2, dilation=2)), "0"),
    "grouped": (lambda: _trunk(nn.Conv2d(8, 16, 3, 1, 1, groups=4)), "0"),
    "oblong": (lambda: _trunk(nn.Conv2d(8, 32, (3, 1), (2, 1), (1, 0))), "0"),
    "padding by name": (lambda: _trunk(nn.Conv2d(8, 16, 3, padding="same")), "0"),
    "no padding by name": (lambda: _trunk(nn.Conv2d(8, 32, 3, padding="valid")), "0"),
    "nothing to reflect": (lambda: _trunk(nn.Conv2d(8, 32, 3, padding_mode="reflect")), "0"),
    "reflected padding": (lambda: _trunk(nn.Conv2d(8, 16, 3, padding=1, padding_mode="reflect")), "3"),
    "leaky before the head": (lambda: _trunk(nn.Conv2d(8, 16, 3, 1, 1), last=nn.LeakyReLU()), "5"),
    "gelu before the head": (lambda: _trunk(nn.Conv2d(8, 16, 3, 1, 1), last=nn.GELU()), "5"),
    "in place": (lambda: _trunk(nn.Conv2d(8, 16, 3, 1, 1), last=nn.ReLU(inplace=True)), "0"),
    "dropout": (lambda: _trunk(nn.Dropout2d(), nn.Conv2d(8, 16, 3, 1, 1), last=nn.Dropout()), "0"),
    "pooling": (lambda: _trunk(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, 1, 1)), "3"),
    "global pooling": (lambda: _trunk(last=nn.AdaptiveAvgPool2d(1)), "4"),
    "batch norm behind the relu": (lambda: _trunk(nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3, 1, 1)), "0"),
    "batch norm without weights": (lambda: _trunk(nn.Conv2d(8, 16, 3, 1, 1), nn.BatchNorm2d(16, affine=False)), "0"),
    "no activation": (lambda: _trunk(nn.Conv2d(8, 16, 3, 1, 1), last=nn.Identity()), "0"),
    "hidden linear": (lambda: _trunk(nn.Flatten(), nn.Linear(512, 32), nn.BatchNorm1d(32)), "0"),
}


@pytest.mark.parametrize("name", _KINDS)
def test_every_kind_of_layer(capture: Callable[..., Any], name: str) -> None:
    build, module = _KINDS[name]
    case = capture(build(), [4])
    anchor = _peeled(case)
    assert anchor.module == module
    assert max(case.errors(anchor)) < 1e-4


@pytest.mark.parametrize("name", _KINDS)
def test_every_kind_of_layer_with_three_images(capture: Callable[..., Any], name: str) -> None:
    case = capture(_KINDS[name][0](), [4, 0, 7])
    anchor = _peeled(case)
    assert max(case.errors(anchor)) < max(1e-5, 10 * anchor.error)
    assert anchor.error < PeelingConfig().tolerance


class _FlattenedByHand(nn.Module):
    """No flatten module, and layers other than a ReLU right before it."""

    def __init__(self, *last: nn.Module) -> None:
        super().__init__()
        self.lower = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 1, 1), *last)
        self.head = nn.Linear(1024, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lower(x).flatten(1))


@pytest.mark.parametrize("last", [(), (nn.BatchNorm2d(16),), (nn.BatchNorm2d(16), nn.ReLU())])
def test_a_flatten_that_is_no_module(capture: Callable[..., Any], last: tuple[nn.Module, ...]) -> None:
    case = capture(_FlattenedByHand(*last), [4])
    anchor = _peeled(case)
    assert anchor.module == "lower.0"
    assert max(case.errors(anchor)) < 1e-4


def test_channels_that_batch_norm_silences_do_not_poison_the_rest(capture: Callable[..., Any]) -> None:
    model = _trunk(nn.Conv2d(8, 32, 3, 1, 1), nn.BatchNorm2d(32))
    with torch.no_grad():
        model.get_parameter("3.weight")[:3] = 0.0
        model.get_parameter("3.bias")[:] = 0.3
    case = capture(model, [4])
    anchor = _peeled(case)
    assert anchor.module == "0"
    assert max(case.errors(anchor)) < 1e-4


def test_a_multilayer_perceptron_peels_to_its_first_layer(capture: Callable[..., Any]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    case = capture(model, [4, 0, 7, 1, 2, 9])
    anchor = _peeled(case)
    assert anchor.module == "1"
    torch.testing.assert_close(anchor.activations.float(), case.images.flatten(1), rtol=0, atol=1e-4)


def test_float64_models(capture: Callable[..., Any]) -> None:
    case = capture(_trunk(nn.Conv2d(8, 16, 3, 1, 1)).double(), [4, 2])
    assert max(case.errors(_peeled(case))) < 1e-8


def test_a_residual_network_peels_to_its_head(capture: Callable[..., Any]) -> None:
    from gradinversion.capture import load_model

    case = capture(load_model("resnet18", classes=10, image_size=32), [4, 0, 7], side=32)
    anchor = _peeled(case)
    assert anchor.module == "fc"
    assert max(case.errors(anchor)) < 1e-4
    assert set(anchor.explained) == {"fc.weight", "fc.bias"}


def _train(model: nn.Module, steps: int) -> None:
    images, labels = torch.randn(32, 3, 16, 16), torch.arange(32) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("labels", [[3], [5, 0], [8, 1, 6, 2]])
def test_a_trained_network_is_peeled_rightly(capture: Callable[..., Any], labels: list[int]) -> None:
    exact = 0
    for seed in range(6):
        torch.manual_seed(seed)
        model = convnet(10, 16, width=8)
        _train(model, 25)
        case = capture(model, labels, side=16)
        probabilities = model(case.images).softmax(1).detach()
        assert float(probabilities.max()) > 0.3  # far from uniform
        anchor = peel(case.update, model, case.labels).anchor
        assert anchor is not None
        activations, cotangent = case.errors(anchor)
        assert max(activations, cotangent) < 10 * max(anchor.error, 2e-7)
        # A single unit on the wrong side makes this a thousand times as large; dbeta of the batch norm tells.
        exact += cotangent < 1e-5
        if anchor.one_sided:
            assert bool((anchor.cotangent[anchor.activations == 0] == 0).all())
    assert exact >= 5


def test_a_frozen_layer_ends_the_way(capture: Callable[..., Any]) -> None:
    model = _trunk(nn.Conv2d(8, 16, 3, 1, 1))
    model[2].weight.requires_grad_(False)
    case = capture(model, [4])
    peeling = peel(case.update, model, case.labels)
    assert peeling.anchor is not None
    assert peeling.anchor.module == "3"
    assert max(case.errors(peeling.anchor)) < 1e-4
    assert "module '2'" in peeling.message
    assert "frozen layer" in peeling.message


def test_a_frozen_bias_does_not(capture: Callable[..., Any]) -> None:
    model = _trunk(nn.Conv2d(8, 16, 3, 1, 1))
    for index in (2, 5):
        model[index].bias.requires_grad_(False)
    case = capture(model, [4, 1])
    assert _peeled(case).module == "0"


def test_a_frozen_head_is_refused(capture: Callable[..., Any]) -> None:
    model = _trunk(nn.Conv2d(8, 16, 3, 1, 1))
    model[5].weight.requires_grad_(False)
    case = capture(model, [4])
    peeling = peel(case.update, model, case.labels)
    assert peeling.anchor is None
    assert "5.weight" in peeling.message


@pytest.mark.parametrize("labels", [list(range(10)), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]])
def test_a_batch_as_large_as_the_classes_is_refused(capture: Callable[..., Any], labels: list[int]) -> None:
    case = capture(_trunk(), labels)
    peeling = peel(case.update, case.model, case.labels)
    assert peeling.anchor is None
    assert "fewer images than classes" in peeling.message


@pytest.mark.parametrize(
    ("defence", "strength"),
    [("noise", 0.1), ("prune", 0.9)],
)
@pytest.mark.parametrize("labels", [[3], [5, 0, 1], [8, 1, 6, 2, 0, 3, 4, 5, 7]])
def test_a_defended_gradient_is_refused(
    capture: Callable[..., Any], labels: list[int], defence: str, strength: float
) -> None:
    case = capture(_small_convnet(), labels, side=16)
    defended = apply_defence(case.update.gradients, defence, strength, torch.Generator().manual_seed(0))
    peeling = peel(replace(case.update, gradients=defended), case.model, case.labels)
    assert peeling.anchor is None
    assert "stopped at 13" in peeling.message


@pytest.mark.parametrize(("defence", "strength"), [("noise", 0.001), ("noise", 0.01), ("quantise", 8)])
@pytest.mark.parametrize("labels", [[3], [5, 0, 1], [8, 1, 6, 2, 0, 3, 4, 5, 7]])
def test_what_a_defence_leaves_is_no_better_known_than_is_said(
    capture: Callable[..., Any], labels: list[int], defence: str, strength: float
) -> None:
    case = capture(_small_convnet(), labels, side=16)
    defended = apply_defence(case.update.gradients, defence, strength, torch.Generator().manual_seed(0))
    anchor = peel(replace(case.update, gradients=defended), case.model, case.labels).anchor
    assert anchor is not None
    assert max(case.errors(anchor)) < anchor.error <= PeelingConfig().tolerance


@pytest.mark.parametrize("labels", [[3], [5, 0, 1], [8, 1, 6, 2, 0, 3, 4]])
@pytest.mark.parametrize("factors", ["one", "each"])
def test_clipping_is_undone(capture: Callable[..., Any], labels: list[int], factors: str) -> None:
    case = capture(_small_convnet(), labels, side=16)
    truth = torch.full((len(labels),), 0.1) if factors == "one" else torch.linspace(0.05, 0.4, len(labels))
    sent = {name: torch.zeros_like(g) for name, g in case.update.gradients.items()}
    images = case.update.normalisation.invert(case.images)
    for image, label, factor in zip(images, case.labels, truth, strict=True):
        own = capture_gradient(case.model, image[None], label[None], normalisation=case.update.normalisation)
        sent = {name: g + factor / len(labels) * own.gradients[name] for name, g in sent.items()}
    clipped = replace(case.update, gradients=sent)
    peeling = peel(clipped, case.model, case.labels)
    assert peeling.anchor is not None
    alone = factors == "one" or len(labels) == 1
    assert ("clipping of the whole" if alone else "clipped image by image") in peeling.message
    assert peeling.anchor.scales == pytest.approx(truth.tolist(), rel=1e-3)
    assert case.errors(peeling.anchor)[0] < 1e-3
    refused = peel(clipped, case.model, case.labels, scaled=False)
    assert refused.anchor is None
    assert "stopped at 13" in refused.message


def test_an_anchor_stays_behind_a_relu_of_units_that_nothing_tells_apart(capture: Callable[..., Any]) -> None:
    # Neither a bias nor a batch norm: no sum over the units, and with noise many of them may be open or shut.
    case = capture(_trunk(nn.Conv2d(8, 16, 3, 1, 1, bias=False)), [8, 1, 6, 2])
    random = torch.Generator().manual_seed(0)
    sent = {
        name: g + 3e-3 * g.square().mean().sqrt() * torch.randn(g.shape, generator=random)
        for name, g in case.update.gradients.items()
        if name != "5.bias"
    }
    for exact, behind in ((case.update.gradients, False), (sent, True)):
        peeling = peel(replace(case.update, gradients=exact), case.model, case.labels)
        assert peeling.anchor is not None
        assert ("It stays behind the ReLU there: units near zero" in peeling.message) is behind
        assert not (behind and peeling.anchor.one_sided)
        assert max(case.errors(peeling.anchor)) < 10 * peeling.anchor.error


@pytest.mark.parametrize("factor", [4.0, 65536.0])
def test_a_sum_in_place_of_the_mean_is_told_as_one(capture: Callable[..., Any], factor: float) -> None:
    case = capture(_small_convnet(), [8, 1, 6, 2], side=16)
    summed = replace(case.update, gradients={name: factor * g for name, g in case.update.gradients.items()})
    peeling = peel(summed, case.model, case.labels)
    assert peeling.anchor is not None
    assert "clipped" not in peeling.message
    assert f"{factor:.3g} times that of the mean loss (a sum over the batch" in peeling.message
    assert peeling.anchor.scales == pytest.approx([factor] * 4, rel=1e-3)
    assert case.errors(peeling.anchor)[0] < 1e-3


@pytest.mark.parametrize("labels", [[3], [5, 0], [8, 1, 6, 2]])
def test_nothing_is_said_of_factors_of_one(capture: Callable[..., Any], labels: list[int]) -> None:
    model = convnet(10, 16, width=8)
    _train(model, 25)
    case = capture(model, labels, side=16)
    peeling = peel(case.update, model, case.labels)
    assert peeling.anchor is not None
    assert peeling.anchor.scales == ()
    assert "times" not in peeling.message


@pytest.mark.parametrize(("defence", "strength"), [("noise", 1e-5), ("noise", 1e-4), ("quantise", 16)])
@pytest.mark.parametrize("labels", [[5, 0], [8, 1, 6, 2, 0, 3, 4, 5, 7]])
def test_a_weak_defence_never_gives_a_wrong_anchor(
    capture: Callable[..., Any], labels: list[int], defence: str, strength: float
) -> None:
    # Little noise hides which ReLUs were open, and with them the cotangent before the ReLU.
    case = capture(convnet(10, 16, width=16), labels, side=16)
    defended = apply_defence(case.update.gradients, defence, strength, torch.Generator().manual_seed(0))
    anchor = peel(replace(case.update, gradients=defended), case.model, case.labels).anchor
    if anchor is not None:
        assert max(case.errors(anchor)) < 5 * PeelingConfig().tolerance
        assert anchor.error <= PeelingConfig().tolerance


def test_half_precision_gradients_never_give_a_wrong_anchor(capture: Callable[..., Any]) -> None:
    case = capture(_small_convnet(), [5, 0, 7], side=16)
    for dtype in (torch.float16, torch.bfloat16):
        sent = {name: gradient.to(dtype) for name, gradient in case.update.gradients.items()}
        anchor = peel(
            replace(case.update, gradients=sent), case.model, case.labels, PeelingConfig(tolerance=0.1)
        ).anchor
        assert anchor is None or max(case.errors(anchor)) < 0.3


def test_tampering_with_one_tensor_is_noticed_at_that_layer(capture: Callable[..., Any]) -> None:
    case = capture(_small_convnet(), [3], side=16)
    sent = dict(case.update.gradients)
    sent["6.weight"] = 1.01 * sent["6.weight"]
    peeling = peel(replace(case.update, gradients=sent), case.model, case.labels, PeelingConfig(tolerance=1e-3))
    assert peeling.anchor is not None
    assert peeling.anchor.module == "8"
    assert max(case.errors(peeling.anchor)) < 1e-4


def test_switched_off(capture: Callable[..., Any]) -> None:
    case = capture(_trunk(), [3])
    peeling = peel(case.update, case.model, case.labels, PeelingConfig(enabled=False))
    assert peeling.anchor is None
    assert "switched off" in peeling.message


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -1.0, float("nan")])
def test_a_tolerance_outside_its_range_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match=r"peeling\.tolerance"):
        PeelingConfig(tolerance=tolerance)


def test_the_same_update_gives_the_same_anchor_bit_for_bit(capture: Callable[..., Any]) -> None:
    case = capture(_trunk(nn.Conv2d(8, 16, 3, 1, 1)), [3, 1])
    first, second = _peeled(case), _peeled(case)
    assert bool((first.activations == second.activations).all())
    assert bool((first.cotangent == second.cotangent).all())

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradinversion.peeling.kinds import Rectifier
from gradinversion.peeling.rules import misfits
from torch import nn

Cases = Callable[..., Any]
# What two images need; a derivation that ends early tries everything, for half a minute.
ENOUGH_FOR_TWO = 3e9


@pytest.mark.parametrize(("count", "seed"), [(2, 0), (3, 1), (4, 0)])
def test_a_residual_network_is_peeled_from_its_last_block_to_the_images(
    residual_case: Cases, count: int, seed: int
) -> None:
    case = residual_case(count, seed)
    found = case.derived()
    images = found.knowledge.complete("clone")  # what enters the first convolution
    assert images is not None
    assert max(case.errors("clone", images.values)) < 1e-5
    assert found.refused == ()
    assert found.steps[0].rule == "taps"
    # All steps speak of the same images in the same order.
    for step in found.steps:
        values = found.knowledge.activations[step.value].values
        true = case.errors(step.value, values)
        assert max(true) < 1e-5
        for stated, error in zip(step.error, true, strict=True):
            assert stated > error / 10, step.value


def test_the_images_keep_their_order_from_place_to_place(residual_case: Cases) -> None:
    case = residual_case(3)
    known = case.derived().knowledge
    images = known.complete("clone").values
    order = torch.cdist(images.flatten(1), case.images.double().flatten(1)).argmin(dim=1)
    for value, found in known.activations.items():
        true = case.truth[value][order]
        torch.testing.assert_close(found.values * found.known, true * found.known, rtol=1e-4, atol=1e-4)


def test_every_unit_is_on_its_side(residual_case: Cases) -> None:
    case = residual_case(4)
    known = case.derived().knowledge
    images = known.complete("clone").values
    order = torch.cdist(images.flatten(1), case.images.double().flatten(1)).argmin(dim=1)
    assert known.units
    for name, units in known.units.items():
        assert torch.equal(units.is_open, case.truth[name][order] > 0)


def test_all_gradients_of_known_places_are_reproduced(residual_case: Cases) -> None:
    case = residual_case(2)
    found = case.derived()
    left = misfits(_setting(case), found.knowledge)
    assert {"0", "2.conv1", "2.conv2", "2.down", "3.conv1", "3.conv2", "3.down"} <= set(left)
    assert max(left.values()) < 1e-6


def _setting(case: Any) -> Any:
    from gradinversion.peeling.rules.rule import Setting

    return Setting(case.graph, case.gradients, len(case.images), 3e-2)


def test_the_derivative_passes_a_skip_whose_input_is_not_known(residual_case: Cases) -> None:
    case = residual_case(2)
    del case.gradients["3.conv1.weight"]
    del case.gradients["3.down.weight"]
    found = case.derived()
    # The foothold is inside the block; what enters the block cannot be solved for, but its derivative is known.
    before = case.graph.by_name["3.down"].inputs[0]
    assert found.knowledge.complete(before) is None
    assert before in found.knowledge.arriving


@pytest.mark.parametrize("missing", ["2.conv1.weight", "2.conv2.weight"])
def test_a_frozen_layer_is_crossed_rightly_or_ends_the_way(residual_case: Cases, missing: str) -> None:
    case = residual_case(2)
    del case.gradients[missing]
    found = case.derived(operations=ENOUGH_FOR_TWO)
    whole = found.knowledge.complete("clone")
    assert whole is None or max(case.errors("clone", whole.values)) < 1e-4
    assert found.knowledge.complete(case.graph.by_name["3.conv1"].inputs[0]) is not None


def test_a_parameter_that_is_not_trained_has_no_gradient(residual_case: Cases, residual_network: Cases) -> None:
    model = residual_network()
    model[3].conv2.weight.requires_grad_(False)
    found = residual_case(2, model=model).derived(operations=ENOUGH_FOR_TWO)
    # The other stage's taps serve.
    assert found.steps[0].value == residual_case(2).graph.by_name["4.conv2"].inputs[0]


def test_without_taps_nothing_is_derived(residual_case: Cases) -> None:
    case = residual_case(2)
    for name in ("2.conv2.weight", "3.conv2.weight", "4.conv2.weight"):
        del case.gradients[name]
    found = case.derived()
    assert found.steps == ()
    assert found.knowledge.activations == {}


def test_one_image_twice_is_not_told_apart(residual_case: Cases, residual_network: Cases) -> None:
    import torch.nn.functional as F

    model = residual_network()
    case = residual_case(2, model=model)
    images = case.images[:1].repeat(2, 1, 1, 1)
    loss = F.cross_entropy(model(images), torch.tensor([0, 0]))
    names = list(case.gradients)
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, [parameters[name] for name in names])
    case.gradients.update(zip(names, found, strict=True))
    derivation = case.derived()
    assert derivation.steps == ()
    assert {one.rule for one in derivation.refused} == {"taps"}


@pytest.mark.parametrize("told", [1, 3])
def test_a_wrong_number_of_images_is_not_believed(residual_case: Cases, told: int) -> None:
    case = residual_case(2)
    assert case.derived(image_count=told).steps == ()


def test_a_gradient_that_contradicts_itself_is_not_believed(residual_case: Cases) -> None:
    case = residual_case(2)
    shuffled = case.gradients["2.conv1.weight"]
    case.gradients["2.conv1.weight"] = shuffled[
        torch.randperm(len(shuffled), generator=torch.Generator().manual_seed(0))
    ]
    found = case.derived()
    assert found.knowledge.complete("clone") is None
    (refusal,) = [one for one in found.refused if one.rule == "convolution input"]
    assert refusal.value == case.graph.by_name["2.conv1"].inputs[0]


@pytest.mark.parametrize("noise", [1e-5, 1e-4, 1e-3, 1e-2])
def test_what_noise_does_is_stated(residual_case: Cases, noise: float) -> None:
    stated_too_small = []
    for seed in range(3):
        case = residual_case(2, seed)
        generator = torch.Generator().manual_seed(seed)
        for name, gradient in case.gradients.items():
            off = torch.randn(gradient.shape, generator=generator)
            case.gradients[name] = gradient + noise * off * gradient.square().mean().sqrt()
        found = case.derived(operations=ENOUGH_FOR_TWO)
        for step in found.steps:
            values = found.knowledge.activations[step.value].values
            true = case.truth[step.value]
            errors = torch.cdist(values.flatten(1), true.flatten(1)).amin(dim=1) / true.flatten(1).norm(dim=1).amax()
            if max(step.error) < float(errors.max()) / 10:
                stated_too_small.append((seed, step.value, max(step.error), float(errors.max())))
    assert stated_too_small == []


def test_a_rectifier_with_a_ceiling_is_undone_where_it_was_open(residual_case: Cases, residual_network: Cases) -> None:
    model = residual_network()
    model[1] = nn.ReLU6()
    with torch.no_grad():
        model[0].bias += 3  # so that the ceiling holds some units back
    case = residual_case(2, model=model)
    found = case.derived()
    (stem,) = [node for node in case.graph.nodes if node.kind == Rectifier(6.0)]
    true = case.truth[stem.name]
    assert bool((true == 6).any())
    assert int((found.knowledge.units[stem.name].is_open).sum()) == int(((true > 0) & (true < 6)).sum())
    before = found.knowledge.activations[stem.inputs[0]]
    nearest = torch.cdist(before.values.flatten(1), (case.truth[stem.inputs[0]]).flatten(1)).argmin(dim=1)
    off = (before.values - case.truth[stem.inputs[0]][nearest])[before.known]
    assert float(off.abs().max()) < 1e-3


class Bottleneck(nn.Module):
    """A pointwise convolution on either side of the one with taps."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 1)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1)
        self.conv3 = nn.Conv2d(inner, channels, 1)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.conv2(torch.relu(self.conv1(value))))
        return torch.relu(self.conv3(inner) + value)


@pytest.mark.parametrize("count", [2, 3])
def test_bottlenecks_hand_the_derivative_on_to_their_skip(residual_case: Cases, count: int) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Conv2d(64, 128, 3, 2, 1)]
    blocks = [nn.ReLU(), Bottleneck(128, 64), Bottleneck(128, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    case = residual_case(count, model=nn.Sequential(*layers, *blocks, nn.Linear(128, 10)).eval())
    found = case.derived()
    images = found.knowledge.complete("clone")
    assert images is not None
    assert max(case.errors("clone", images.values)) < 1e-5
    # Of the block with the foothold the derivative at the sum came through its last convolution.
    first = found.steps[0].value
    (taps,) = [node.name for node in case.graph.readers(first)]
    assert found.knowledge.arriving[f"{taps.partition('.')[0]}.conv3"].rule == "output derivative"
    for step in found.steps:
        errors = case.errors(step.value, found.knowledge.activations[step.value].values)
        assert all(stated > error / 10 for stated, error in zip(step.error, errors, strict=True)), step

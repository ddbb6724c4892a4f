from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.cut import Cut, find_cut, images_from_cut
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.recording import record_derivation
from gradinversion.peeling.refusals import Refused, Why
from gradinversion.peeling.rows import find_block
from gradinversion.peeling.rules import Derivation, derive
from torch import Tensor, nn

Makes = Callable[..., nn.Module]


def _case(
    model: nn.Module, count: int, seed: int = 1, mode: BatchNormMode = BatchNormMode.EVAL
) -> tuple[Graph, dict[str, Tensor], dict[str, Tensor]]:
    """The graph, a float32 gradient and the true values."""
    random = torch.Generator().manual_seed(seed)
    images = F.interpolate(2 * torch.randn(count, 3, 4, 4, generator=random), 8) + torch.randn(
        count, 3, 8, 8, generator=random
    )
    loss = F.cross_entropy(model(images), torch.arange(count) % 10)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    graph = network_graph(model, (3, 8, 8), mode, count)
    assert isinstance(graph, Graph)
    truth = {graph.images: images.double()}
    with torch.no_grad():
        for node in graph.nodes if not any(graph.opaque()) else ():
            truth[node.name] = node.kind.forward([truth[name] for name in node.inputs], graph.tensors_of(node))
    return graph, gradients, truth


def _errors(found: Derivation, truth: Mapping[str, Tensor], value: str) -> tuple[Tensor, Tensor]:
    """True and stated, of each image."""
    known = found.knowledge.complete(value)
    assert known is not None
    flat, true = known.values.flatten(1), truth[value].flatten(1)
    which = torch.cdist(flat, true, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
    assert sorted(which.tolist()) == list(range(len(true)))
    return (flat - true[which]).norm(dim=1) / true[which].norm(dim=1), known.error


@pytest.mark.parametrize(("count", "kernel"), [(2, 3), (3, 5)])
def test_a_block_is_found_and_what_lies_before_it_follows(phone_network: Makes, count: int, kernel: int) -> None:
    graph, gradients, truth = _case(phone_network(kernel=kernel), count)
    found = derive(graph, gradients, count, 3e-2, operations=3e10)
    assert found.steps[0].rule == "rows"
    block = find_block(graph, graph.by_name["skip.project"])
    assert block is not None
    inner = graph.by_name["down.project"].inputs[0]
    for value in (block.inner, block.entering, inner):
        true, stated = _errors(found, truth, value)
        assert float(true.max()) < 1e-4, value
        assert bool((stated >= true / 10).all()), value
    assert record_derivation(found, count, 3e-2).footholds == ("the rows of skip.project",)


def test_what_enters_a_block_without_a_skip_follows_from_open_units(phone_network: Makes) -> None:
    graph, gradients, truth = _case(phone_network(), 2)
    found = derive(graph, gradients, 2, 3e-2)
    (step,) = (one for one in found.steps if one.rule == "column space")
    assert step.value == graph.by_name["down.expand"].inputs[0]
    true, stated = _errors(found, truth, step.value)
    assert float(true.max()) < 1e-4
    assert bool((stated >= true / 10).all())


def test_dead_units_leave_a_few_on_the_wrong_side_whose_rows_are_left_out(phone_network: Makes) -> None:
    model = phone_network()
    for name, module in model.named_modules():
        if name.endswith(("bn1", "bn2")):
            assert isinstance(module, nn.BatchNorm2d)
            with torch.no_grad():
                module.bias[::4] = -100.0
    graph, gradients, truth = _case(model, 2)
    found = derive(graph, gradients, 2, 3e-2)
    (step,) = (one for one in found.steps if one.rule == "column space")
    true, stated = _errors(found, truth, step.value)
    assert float(true.max()) < 1e-4
    assert bool((stated >= true / 10).all())


def test_more_places_than_channels_in_front_are_said(phone_network: Makes) -> None:
    graph, gradients, _ = _case(phone_network(), 3)
    # Too few operations for what comes behind it.
    found = derive(graph, gradients, 3, 3e-2, operations=3e10)
    (refused,) = (one for one in found.refused if one.rule == "column space")
    assert (refused.why, refused.places, refused.equations) == (Why.FEW_EQUATIONS, 48, 40)


def test_more_places_than_the_rows_allow_are_said(phone_network: Makes) -> None:
    graph, gradients, _ = _case(phone_network(), 7)
    found = derive(graph, gradients, 7, 3e-2)
    assert found.steps == ()
    (refused,) = (one for one in found.refused if one.rule == "rows")
    assert (refused.why, refused.places, refused.equations) == (Why.FEW_EQUATIONS, 28, 24)


def test_one_image_twice_is_not_told_apart(phone_network: Makes) -> None:
    model = phone_network()
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    loss = F.cross_entropy(model(image.repeat(2, 1, 1, 1)), torch.tensor([0, 3]))
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    graph = network_graph(model, (3, 8, 8), BatchNormMode.EVAL, 2)
    assert isinstance(graph, Graph)
    found = derive(graph, gradients, 2, 3e-2)
    assert found.steps == ()
    assert {one.why for one in found.refused if one.rule == "rows"} == {Why.RANK}


def test_functions_without_exact_zeros_have_no_rows(phone_network: Makes) -> None:
    graph, gradients, _ = _case(phone_network(act=nn.SiLU), 2)
    found = derive(graph, gradients, 2, 3e-2)
    assert found.steps == ()
    # Said of the block, and no depthwise convolution is named as one whose taps have too few equations.
    assert [(one.rule, one.value, one.why) for one in found.refused] == [
        ("rows", graph.by_name["skip.project"].inputs[0], Why.NO_ZEROS)
    ]
    assert "exact zeros" in found.refused[0].words


def test_channels_in_groups_have_no_rows(phone_network: Makes) -> None:
    model = phone_network()
    for block in (model.get_submodule("down"), model.get_submodule("skip")):
        project = block.get_submodule("project")
        assert isinstance(project, nn.Conv2d)
        block.add_module("project", nn.Conv2d(project.in_channels, project.out_channels, 1, groups=4, bias=False))
    graph, gradients, _ = _case(model, 2)
    assert [one.why for one in derive(graph, gradients, 2, 3e-2).refused] == [Why.ROWS_IN_GROUPS]


def test_train_mode_leaves_differences_from_the_mean_and_says_so(phone_network: Makes) -> None:
    model = phone_network().train()
    graph, gradients, _ = _case(model, 2, mode=BatchNormMode.TRAIN_PRIVATE)
    found = derive(graph, gradients, 2, 3e-2)
    assert found.steps == ()
    assert [one.why for one in found.refused] == [Why.CENTRED]


def test_without_sums_in_front_no_length_is_told(phone_network: Makes) -> None:
    graph, gradients, _ = _case(phone_network(), 2)
    for name in ("skip.bn2.bias", "down.bn2.bias"):
        del gradients[name]
    assert [one.why for one in derive(graph, gradients, 2, 3e-2).refused] == [Why.NO_SUMS]


def test_lengths_that_are_none_are_said_without_a_figure() -> None:
    assert Refused("rows", "inner", Why.LENGTHS).words == "no lengths above zero explain the gradient in front"


@pytest.mark.parametrize("missing", ["skip.project.weight", "skip.expand.weight", "head.0.weight", "skip.bn2.bias"])
def test_a_block_needs_its_gradients(phone_network: Makes, missing: str) -> None:
    graph, gradients, _ = _case(phone_network(), 2)
    del gradients[missing]
    assert derive(graph, gradients, 2, 3e-2).steps == ()


@pytest.mark.parametrize("noise", [1e-5, 1e-4, 1e-3, 1e-2, 0.1])
def test_what_noise_leaves_is_not_stated_better_than_it_is(phone_network: Makes, noise: float) -> None:
    graph, gradients, truth = _case(phone_network(), 2)
    random = torch.Generator().manual_seed(2)
    noisy = {
        name: one + noise * one.square().mean().sqrt() * torch.randn(one.shape, generator=random)
        for name, one in gradients.items()
    }
    found = derive(graph, noisy, 2, 3e-2)
    for step in found.steps:
        true, stated = _errors(found, truth, step.value)
        assert bool((stated >= true / 10).all()), step.value
    assert bool(found.steps) or noise >= 1e-3


def test_a_cut_holds_units_at_the_ceiling_from_below(phone_network: Makes) -> None:
    graph, gradients, truth = _case(phone_network(), 2)
    cut = find_cut(derive(graph, gradients, 2, 3e-2))
    assert isinstance(cut, Cut)
    assert any(bool(place.is_held.any()) for place in cut.places)
    images = truth[graph.images].float()
    place = cut.places[0]
    flat, true = place.values.flatten(1), truth[place.rectifier].flatten(1)
    nearest = torch.cdist(flat, true, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
    low, high = torch.full((3, 1, 1), -9.0), torch.full((3, 1, 1), 9.0)
    found = images_from_cut(cut, images[nearest], low, high, 20)
    assert float(found.misfit.max()) < 1e-4

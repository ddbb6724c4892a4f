"""Visits of a weight delta whose client ran batch norm on each step's own statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import BatchNormMode, client_mode
from gradinversion.capture.losses import ClientLoss
from gradinversion.peeling.cut import Cut, find_cut
from gradinversion.peeling.cut.batch_labels import LabelReader
from gradinversion.peeling.cut.visit_images import Found, StepByStep
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.local_steps import LocalSteps
from gradinversion.peeling.refusals import Why
from gradinversion.peeling.rules import Derivation, derive
from gradinversion.peeling.visits import VisitList
from gradinversion.peeling.visits_in_batches import batches_apart
from torch import Tensor, nn

LABELS = torch.tensor([3, 7, 1, 8])
STEPS = LocalSteps((2, 2), rate=0.05, momentum=0.5)
TRAIN = BatchNormMode.TRAIN_PRIVATE


@dataclass(frozen=True)
class Trained:
    """What a client sent, and the truth in every visit."""

    graph: Graph
    images: Tensor
    gradients: dict[str, Tensor]
    truth: dict[str, Tensor]


@pytest.fixture(scope="module")
def trained(residual_case: Callable[..., Any], residual_network: Callable[..., Any]) -> Trained:
    """Two steps of two images, with momentum."""
    return _train(residual_case, residual_network(0, wide=96, normed_skips=True), ([0, 1], [2, 3]))


def _train(residual_case: Callable[..., Any], model: nn.Module, batches: tuple[list[int], ...]) -> Trained:
    images = residual_case(count=4, seed=0, model=model).images
    graph = network_graph(model, tuple(images.shape[1:]), TRAIN, 4)
    assert isinstance(graph, Graph)
    after, seen = copy.deepcopy(model), list[dict[str, Tensor]]()
    optimiser = torch.optim.SGD(after.parameters(), lr=STEPS.rate, momentum=STEPS.momentum)
    for batch in batches:
        now = {name: one.detach().double() for name, one in after.named_parameters()}
        own = replace(graph, tensors={**graph.tensors, **now})
        values = {graph.images: images[batch].double()}
        for node in graph.nodes:
            values[node.name] = node.kind.forward([values[name] for name in node.inputs], own.tensors_of(node))
        seen.append(values)
        optimiser.zero_grad()
        with client_mode(after, TRAIN):
            F.cross_entropy(after(images[batch]), LABELS[batch]).backward()
        optimiser.step()
    pairs = zip(model.named_parameters(), after.parameters(), strict=True)
    gradients = {name: STEPS.summed(before.detach(), (now - before).detach()) for (name, before), now in pairs}
    truth = {name: torch.cat([values[name] for values in seen]) for name in seen[0]}
    return Trained(graph, images, gradients, truth)


@pytest.fixture(scope="module")
def found(trained: Trained) -> Derivation:
    return derive(trained.graph, trained.gradients, 4, 3e-2, steps=STEPS)


def _order(trained: Trained, found: Derivation) -> tuple[Tensor, Tensor]:
    """Relative error of each visit's first recovered value, and which visit it is."""
    step = found.steps[0]
    true, ours = trained.truth[step.value].flatten(1), found.knowledge.activations[step.value].values.flatten(1)
    apart = torch.cdist(ours, true, compute_mode="donot_use_mm_for_euclid_dist") / true.norm(dim=1)
    off, which = apart.min(dim=1)
    return off, which


def test_visits_are_told_apart_and_stand_in_the_order_of_the_steps(trained: Trained, found: Derivation) -> None:
    off, which = _order(trained, found)
    assert sorted(which[:2].tolist()) == [0, 1]
    assert sorted(which[2:].tolist()) == [2, 3]
    assert float(off.max()) < 1e-3
    assert bool((off < 10 * torch.tensor(found.steps[0].error)).all())


def test_more_steps_than_the_client_made_are_refused(trained: Trained) -> None:
    steps = LocalSteps((1, 1, 1, 1), rate=STEPS.rate, momentum=STEPS.momentum)
    other = derive(trained.graph, trained.gradients, 4, 3e-2, steps=steps)
    assert not other.steps
    assert {one.why for one in other.refused} <= {Why.RANK, Why.STEPS, Why.FEW_EQUATIONS}


def test_batches_of_other_sizes_than_told_are_refused(
    residual_case: Callable[..., Any], residual_network: Callable[..., Any]
) -> None:
    trained = _train(residual_case, residual_network(0, wide=96, normed_skips=True), ([0, 1, 2], [3]))
    other = derive(trained.graph, trained.gradients, 4, 3e-2, steps=STEPS)
    assert not other.steps
    assert Why.STEPS in {one.why for one in other.refused}


def test_images_of_each_step_tell_their_labels_and_the_next_weights(trained: Trained, found: Derivation) -> None:
    _, which = _order(trained, found)
    parts = iter(STEPS.slices)

    def find(cut: Cut, first: bool) -> Found:
        images = trained.images[which[next(parts)]]
        return Found(images, torch.zeros(len(images)), images)

    cut = find_cut(found)
    assert isinstance(cut, Cut)
    reader = LabelReader((1, 3, 7, 8), ClientLoss())
    images = StepByStep(cut, found.knowledge, trained.gradients, STEPS, reader=reader).run(find)
    assert images is not None
    assert images.labels is not None
    assert images.labels.tolist() == LABELS[which].tolist()
    # The whole network moves as the client's did.
    assert images.disagreement < 1e-3


def test_no_labels_are_read_where_the_right_ones_are_no_candidates(trained: Trained, found: Derivation) -> None:
    _, which = _order(trained, found)
    cut = find_cut(found)
    assert isinstance(cut, Cut)
    first = cut.in_order(torch.tensor([0, 1]))
    before = found.knowledge.arriving[cut.places[0].before].values[:2]
    reader = LabelReader((0, 2), ClientLoss())
    whole = replace(cut, places=first.places)
    assert reader.read(whole, trained.images[which[:2]], [before / float(STEPS.counts[0])]) is None


def test_batches_are_the_relations_among_the_sums_of_derivatives() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(5, 30, 2, 2, generator=generator, dtype=torch.float64)
    for batch in ([0, 3], [1, 2, 4]):
        true[batch] -= true[batch].mean(dim=(0, 2, 3), keepdim=True)
    lengths = torch.tensor([1.0, 3.0, 0.5, 2.0, 0.2], dtype=torch.float64)
    visits = VisitList(torch.rand(5, 30, 2, 2), true * lengths.reshape(-1, 1, 1, 1), torch.zeros(5))
    batches = batches_apart(visits, 2)
    assert batches is not None
    assert [one.visits for one in batches] == [(0, 3), (1, 2, 4)]
    for one in batches:
        inverse = 1 / lengths[list(one.visits)]
        torch.testing.assert_close(one.inverse, inverse / inverse.mean())
    assert batches_apart(visits, 3) is None

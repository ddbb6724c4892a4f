"""Every visit of a weight delta, each under the weights of its own step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import BatchNormMode, LocalTraining
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.local_steps import LocalSteps
from gradinversion.peeling.recording import record_derivation
from gradinversion.peeling.refusals import Refused, Why
from gradinversion.peeling.rules import Derivation, derive
from gradinversion.peeling.rules.effort import Effort
from gradinversion.peeling.rules.knowledge import Knowledge
from gradinversion.peeling.rules.rule import Derived, Setting
from gradinversion.peeling.rules.visit_foothold import visit_foothold
from gradinversion.peeling.wording import reached
from torch import Tensor, nn

LABELS = torch.tensor([3, 7, 1, 8, 0, 5, 2, 9])


@dataclass(frozen=True)
class Trained:
    """What a client sent after its steps, and the truth in every visit."""

    graph: Graph
    steps: LocalSteps
    gradients: dict[str, Tensor]
    truth: dict[str, Tensor]
    weights: dict[str, Tensor]
    """Of each parameter before each step."""

    def derived(self, steps: LocalSteps | None = None) -> Derivation:
        steps = steps or self.steps
        return derive(self.graph, self.gradients, steps.visit_count, 3e-2, steps=steps)

    def nearest(self, value: str, found: Tensor) -> tuple[Tensor, Tensor]:
        """Relative error of what was found of a value in each visit against the true visit that is nearest, and which
        that is."""
        true = self.truth[value].flatten(1)
        apart = torch.cdist(found.flatten(1), true, compute_mode="donot_use_mm_for_euclid_dist")
        off, which = (apart / true.norm(dim=1)).min(dim=1)
        return off, which


def _values(model: nn.Module, images: Tensor, count: int) -> tuple[Graph, dict[str, Tensor]]:
    graph = network_graph(model, tuple(images.shape[1:]), BatchNormMode.EVAL, count)
    assert isinstance(graph, Graph)
    values = {graph.images: images.double()}
    with torch.no_grad():
        for node in graph.nodes:
            values[node.name] = node.kind.forward([values[name] for name in node.inputs], graph.tensors_of(node))
    return graph, values


def _train(model: nn.Module, images: Tensor, batches: list[list[list[int]]], steps: LocalSteps) -> Trained:
    """One list of batches for each client."""
    clients = [_trained_by(model, images, own, steps) for own in batches]
    graph, _ = _values(model, images, steps.visit_count)
    moved = {
        name: torch.stack([after[name] - one for _, _, after in clients]).mean(dim=0).detach()
        for name, one in model.named_parameters()
    }
    gradients = {name: steps.summed(one.detach(), moved[name]) for name, one in model.named_parameters()}
    # All first steps stand before all second ones.
    seen = [values for step in zip(*(seen for seen, _, _ in clients), strict=True) for values in step]
    weights = [values for step in zip(*(weights for _, weights, _ in clients), strict=True) for values in step]
    truth = {name: torch.cat([one[name] for one in seen]) for name in seen[0]}
    return Trained(
        graph, steps, gradients, truth, {name: torch.stack([one[name] for one in weights]) for name in moved}
    )


def _trained_by(
    model: nn.Module, images: Tensor, batches: list[list[int]], steps: LocalSteps
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]], dict[str, Tensor]]:
    """Values and weights of each step of one client, and the weights that it sends."""
    after = copy.deepcopy(model)
    optimiser = torch.optim.SGD(
        after.parameters(), lr=steps.rate, momentum=steps.momentum, weight_decay=steps.weight_decay
    )
    seen, weights = [], []
    for batch in batches:
        seen.append(_values(copy.deepcopy(after), images[batch], steps.visit_count)[1])
        weights.append({name: one.detach().double().clone() for name, one in after.named_parameters()})
        optimiser.zero_grad()
        F.cross_entropy(after(images[batch]), LABELS[batch]).backward()
        optimiser.step()
    return seen, weights, dict(after.named_parameters())


@pytest.fixture(scope="module")
def trained(residual_case: Callable[..., object], residual_network: Callable[..., nn.Module]) -> Trained:
    """Two steps of two images, with momentum and weight decay."""
    case = residual_case(count=4, seed=0, model=residual_network(0, wide=96))
    steps = LocalSteps((2, 2), rate=0.02, momentum=0.9, weight_decay=0.01)
    return _train(case.model, case.images, [[[0, 1], [2, 3]]], steps)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def found(trained: Trained) -> Derivation:
    return trained.derived()


def test_every_visit_is_found_in_its_own_step(trained: Trained, found: Derivation) -> None:
    assert len(found.steps) > 4
    first = found.steps[0]
    assert first.rule == "taps"
    assert 3 * first.checks["own step"] < first.checks["other steps"]
    for step in found.steps:
        own = found.knowledge.activations[step.value]
        off, which = trained.nearest(step.value, own.values)
        assert sorted(which[:2].tolist()) == [0, 1], step.value
        assert sorted(which[2:].tolist()) == [2, 3], step.value
        assert bool((off <= 10 * own.error.clamp_min(1e-5)).all()), (step.value, off, own.error)


def test_the_weights_of_each_step_are_found(trained: Trained, found: Derivation) -> None:
    known = found.knowledge
    assert len(known.weights) > 6
    for name, own in known.weights.items():
        true = trained.weights[name]
        moved = (true[1] - true[0]).norm()
        assert float((own[0] - true[0]).norm()) == pytest.approx(0.0, abs=1e-12)
        assert float((own[1] - true[1]).norm() / moved) < 0.02, name


@pytest.mark.parametrize("visits", [(1, 2), (2, 2, 1)])
def test_the_number_of_visits_is_read_off(trained: Trained, visits: tuple[int, ...]) -> None:
    wrong = trained.derived(LocalSteps(visits, rate=0.02, momentum=0.9, weight_decay=0.01))
    assert not wrong.steps
    (one,) = [one for one in wrong.refused if one.why is Why.VISITS]
    assert (one.places, one.equations) == (sum(visits), 4)
    assert "shows 4 visits" in one.words


def test_visits_that_obey_no_weights_are_refused(trained: Trained) -> None:
    """Told three times the momentum's share, the second step's weights are others than the client's."""
    wrong = trained.derived(LocalSteps((2, 2), rate=0.2, momentum=0.0))
    assert not wrong.steps
    assert {one.why for one in wrong.refused if one.rule == "taps"} & {Why.STEPS, Why.LENGTHS, Why.INEXACT}


@pytest.mark.parametrize(("clients", "size"), [(2, 2), (3, 1)])
def test_the_average_over_clients_tells_whose_images_are_together(
    clients: int, size: int, residual_case: Callable[..., object], residual_network: Callable[..., nn.Module]
) -> None:
    """Two steps of each; the client with images 0 to 2 size - 1 comes first."""
    cases = [residual_case(count=4, seed=seed, model=residual_network(0, wide=96)) for seed in (0, 1)]
    images = torch.cat([case.images for case in cases])  # type: ignore[attr-defined]
    each = [list(range(2 * size * client, 2 * size * (client + 1))) for client in range(clients)]
    steps = LocalSteps((size,) * 2 * clients, rate=0.02, momentum=0.9, clients=clients)
    trained = _train(cases[0].model, images, [[own[:size], own[size:]] for own in each], steps)  # type: ignore[attr-defined]
    found = trained.derived()
    assert found.steps, [one.words for one in found.refused]
    value = found.steps[0].value
    own = found.knowledge.activations[value]
    off, which = trained.nearest(value, own.values)
    assert bool((off <= 10 * own.error.clamp_min(1e-5)).all())
    # The clients are in any order; visits of one step stay together, and with those of the same client's next step.
    groups = [sorted(which[part].tolist()) for part in steps.slices]
    assert sorted(groups[:clients]) == [list(range(size * client, size * (client + 1))) for client in range(clients)]
    assert [[one + size * clients for one in group] for group in groups[:clients]] == groups[clients:]


def test_second_steps_may_have_fewer_visits_than_first_ones(
    residual_case: Callable[..., object], residual_network: Callable[..., nn.Module]
) -> None:
    """Three images of each of two clients, in batches of two: the last batch has one."""
    cases = [residual_case(count=4, seed=seed, model=residual_network(0, wide=96)) for seed in (0, 1)]
    images = torch.cat([case.images for case in cases])  # type: ignore[attr-defined]
    steps = LocalSteps.of(LocalTraining(0.02, batch_size=2), 3, clients=2)
    assert steps.visits == (2, 2, 1, 1)
    trained = _train(cases[0].model, images, [[[0, 1], [2]], [[3, 4], [5]]], steps)  # type: ignore[attr-defined]
    found = trained.derived()
    assert found.steps, [one.words for one in found.refused]
    value = found.steps[0].value
    own, true = found.knowledge.activations[value].values.flatten(1), trained.truth[value].flatten(1)
    which = torch.cdist(own, true, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1).tolist()
    # In the truth the first steps' visits are 0 to 3, of client 0 and then of client 1; their second ones are 4 and 5.
    groups = [sorted(which[part]) for part in steps.slices]
    assert groups in ([[0, 1], [2, 3], [4], [5]], [[2, 3], [0, 1], [5], [4]])


def test_later_visits_are_known_as_well_as_the_weights_that_earlier_ones_made(
    trained: Trained, found: Derivation
) -> None:
    """What a step's weights are off by is stated of everything that was run with them."""
    known = found.knowledge
    assert known.weights_instead.keys() == known.weights.keys()
    for name, weights in known.weights.items():
        assert torch.equal(weights[0], known.weights_instead[name][0])
        assert not torch.equal(weights[1], known.weights_instead[name][1])
    ran = [name for name, one in known.activations.items() if one.rule == "forwards" and name in trained.truth]
    assert len(ran) > 4
    order = _order(found, trained)
    for name in ran:
        own, true = known.activations[name], trained.truth[name][order].flatten(1)
        off = (own.values.flatten(1) - true).norm(dim=1) / true.norm(dim=1)
        assert bool((off <= 10 * own.error.clamp_min(2e-7)).all()), (name, off, own.error)


def _order(found: Derivation, trained: Trained) -> Tensor:
    """The true visit of each one."""
    value = found.steps[0].value
    own, true = found.knowledge.activations[value].values.flatten(1), trained.truth[value].flatten(1)
    return torch.cdist(own, true, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)


def test_a_usual_client_makes_more_visits_than_are_told_apart(trained: Trained) -> None:
    """Five epochs of ten steps of eight: the reason is said in visits."""
    steps = LocalSteps((8,) * 50, rate=0.02)
    found = trained.derived(steps)
    assert not found.steps
    said = reached(record_derivation(found, steps.visit_count, 3e-2, steps.count))
    (end,) = [one for one in found.refused if one.why is Why.FEW_EQUATIONS][:1]
    assert end.places is not None
    assert end.equations is not None
    enough = 400 * end.equations // end.places
    assert f"they would be enough for {enough} visits of images of this size" in said


def _sent(trained: Trained, kind: str) -> Trained:
    """The delta as it was sent, by this name of what befell it."""
    random = torch.Generator().manual_seed(0)

    def changed(summed: Tensor) -> Tensor:
        # The share of decay is known, and stands for nothing here.
        delta = -trained.steps.rate * summed
        if kind == "noise":
            return delta + 3e-5 * delta.square().mean().sqrt() * torch.randn(delta.shape, generator=random)
        half = delta.to(torch.float16 if kind.startswith("float16") else torch.bfloat16)
        return half.float() if kind.endswith("in float32") else half

    plain = LocalSteps(trained.steps.visits, trained.steps.rate)
    gradients = {name: plain.summed(torch.zeros_like(one), changed(one)) for name, one in trained.gradients.items()}
    return replace(trained, gradients=gradients)


@pytest.mark.parametrize("kind", ["float16", "float16 in float32", "bfloat16", "noise"])
def test_a_delta_in_half_precision_or_defended_has_its_foothold(trained: Trained, kind: str) -> None:
    sent = _sent(trained, kind)
    found = sent.derived()
    assert found.steps, [one.words for one in found.refused]
    value = found.steps[0].value
    own = found.knowledge.activations[value]
    off, which = trained.nearest(value, own.values)
    assert [sorted(which[part].tolist()) for part in trained.steps.slices] == [[0, 1], [2, 3]]
    assert bool((off <= 10 * own.error).all())


def test_a_foothold_that_is_affordable_is_not_given_up_for_one_that_is_better(trained: Trained) -> None:
    setting = Setting(trained.graph, trained.gradients, 4, 3e-2, Effort(3e8), trained.steps)
    (first,) = (one for one in visit_foothold(setting, Knowledge()) if isinstance(one, Derived))
    assert first.rule == "taps"
    own = first.knowledge.activations[first.value]
    off, _ = trained.nearest(first.value, own.values)
    assert bool((off <= 10 * own.error.clamp_min(1e-5)).all())
    none = Setting(trained.graph, trained.gradients, 4, 3e-2, Effort(1e3), trained.steps)
    refused = [one for one in visit_foothold(none, Knowledge()) if isinstance(one, Refused)]
    assert {one.why for one in refused if one.why is not Why.FEW_EQUATIONS} == {Why.COST}

"""The match by features at a cut, held against the plain formula, and what the objective makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from gradinversion.agents import AgentsConfig, Objective, ObjectiveConfig
from gradinversion.agents.inverter import Inverter
from gradinversion.capture import BatchNormMode, capture_gradient
from gradinversion.peeling.cut import Cut, find_cut
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.kinds import Rectifier
from gradinversion.peeling.rules import Derivation, Knowledge, Known
from gradinversion.peeling.units import Units
from gradinversion.target import Start, Target
from torch import Tensor, nn

LABELS = torch.tensor([1, 3])
ALONE = ObjectiveConfig(total_variation_weight=0.0, group_weight=0.0)


class Skip(nn.Module):
    """Two paths from the images, that meet behind a ReLU of one of them."""

    def __init__(self, pooled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.pool = nn.MaxPool2d(3, 1, 1) if pooled else nn.Identity()
        self.outer = nn.Conv2d(12, 12, 3, padding=1)
        self.down = nn.Conv2d(3, 12, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        inner = F.relu(self.norm(self.inner(self.pool(images))))
        return self.fc(F.relu(self.outer(inner) + self.down(images)).mean((2, 3)))


@dataclass(frozen=True)
class Case:
    """A target whose cut is told, and its images as the model is given them."""

    model: Skip
    target: Target
    truth: Tensor

    def values(self, images: Tensor) -> list[Tensor]:
        """In front of the two ReLUs."""
        inner = self.model.norm(self.model.inner(self.model.pool(images)))
        return [inner, self.model.outer(F.relu(inner)) + self.model.down(images)]


def case(pooled: bool = False, error: float = 1e-6, dtype: torch.dtype = torch.float32) -> Case:
    model = Skip(pooled).to(dtype).eval()
    images = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(3), dtype=dtype)
    update = capture_gradient(model, images, LABELS)
    truth = update.normalisation.apply(images)
    graph = network_graph(model, (3, 6, 6), BatchNormMode.EVAL, 2)
    assert isinstance(graph, Graph)
    found = Case(model, Target(update, model, LABELS), truth)
    knowledge = Knowledge()
    rectifiers = [node.name for node in graph.nodes if isinstance(node.kind, Rectifier)]
    for name, value in zip(rectifiers, found.values(truth), strict=True):
        known = value.detach().double().clamp_min(0)
        told = Known(known, torch.ones_like(known).bool(), error * torch.ones_like(known), "told")
        knowledge = knowledge.with_activations(name, told)
        knowledge = knowledge.with_units(name, Units(known > 0, 0 * known, (0 * known).bool()))
    cut = find_cut(Derivation(graph, knowledge))
    assert isinstance(cut, Cut)
    assert len(cut.places) == 2
    return replace(found, target=replace(found.target, cut=cut.in_order(torch.arange(2))))


@torch.no_grad()
def naive(known: Case, images: Tensor) -> Tensor:
    """One number for each image: each of its units by itself."""
    found = []
    for image in range(len(images)):
        square = 0.0
        for mine, theirs in zip(known.values(images), known.values(known.truth), strict=True):
            length = float(theirs[image].clamp_min(0).norm())
            for a, b in zip(mine[image].flatten().tolist(), theirs[image].flatten().tolist(), strict=True):
                square += ((a - b if b > 0 else max(a, 0.0)) / length) ** 2
        found.append(square**0.5)
    return torch.tensor(found)


@pytest.mark.parametrize("pooled", [False, True])
def test_open_units_have_to_be_equal_and_shut_ones_shut(pooled: bool) -> None:
    known = case(pooled)
    objective = Objective(known.target, ALONE)
    assert objective.peeled
    images = known.truth + 0.3 * torch.randn(known.truth.shape, generator=torch.Generator().manual_seed(1))
    terms = objective.terms(images)
    assert terms.keys() == {"activation", "total"}
    assert float(terms["activation"].detach()) == pytest.approx(float(naive(known, images).mean()), rel=1e-4)
    assert float(objective.terms(known.truth)["activation"].detach()) < 1e-5
    assert objective.gradient_loss(known.truth) < 1e-5
    assert objective.residual(images).norm().item() == pytest.approx(
        float(naive(known, images).square().mean().sqrt()), rel=1e-4
    )


def test_a_faint_image_counts_as_much_as_a_loud_one() -> None:
    known = case()
    objective = Objective(known.target, ALONE)
    off = [known.truth.clone(), known.truth.clone()]
    for image, batch in enumerate(off):
        batch[image] = batch[image] + 0.2
    apart = [float(objective.terms(batch)["activation"].detach()) for batch in off]
    for image, value in enumerate(apart):
        assert value == pytest.approx(float(naive(known, off[image])[image]) / 2, rel=1e-3)


def test_the_derivative_is_that_of_the_formula() -> None:
    known = case(dtype=torch.float64)
    objective = Objective(known.target, ALONE)
    images = (known.truth + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective.terms(x)["activation"], (images,), eps=1e-7, atol=1e-4)


@pytest.mark.parametrize(
    ("pooled", "error", "determined"), [(False, 1e-6, True), (True, 1e-6, False), (False, 0.02, False)]
)
def test_images_are_determined_by_exact_features_that_see_every_pixel(
    pooled: bool, error: float, determined: bool
) -> None:
    known = case(pooled, error)
    assert Objective(known.target, ObjectiveConfig()).determined == determined


def test_from_a_start_that_is_near_the_images_are_met_to_rounding() -> None:
    known = case()
    random = torch.Generator().manual_seed(2)
    near = known.truth + 0.3 * torch.randn(known.truth.shape, generator=random)
    target = replace(known.target, start=Start(near, torch.full((2,), 0.3), seed=0))
    inverter = Inverter(Objective(target, ObjectiveConfig()), AgentsConfig(iterations=400), seed=0)
    assert torch.equal(inverter.images, near)
    inverter.run(400, None)
    assert float((inverter.images - known.truth).abs().max()) < 1e-3


def test_the_prior_on_statistics_sees_the_layers_of_the_model() -> None:
    known = case()
    norm = known.model.norm
    norm.running_mean = torch.full((12,), 0.1)
    norm.get_buffer("num_batches_tracked").fill_(5)
    config = replace(ALONE, batch_norm_weight=1.0)
    update = capture_gradient(known.model, torch.rand(2, 3, 6, 6), LABELS)
    objective = Objective(replace(known.target, update=update, model=known.model), config)
    images = known.truth.clone().requires_grad_()
    terms = objective.terms(images)
    assert terms.keys() == {"activation", "batch_norm", "total"}
    (derivative,) = torch.autograd.grad(terms["batch_norm"], images)
    assert bool(derivative.any())


def test_the_consensus_and_the_priors_are_terms_beside_it() -> None:
    known = case()
    objective = Objective(known.target, ObjectiveConfig())
    terms = objective.terms(known.truth, consensus=known.truth + 1)
    assert {"activation", "total_variation", "group", "total"} <= terms.keys()
    assert objective.evidence(known.truth) < 1e-5 < objective.evidence(known.truth + 0.1)


def test_a_cut_in_parts_comes_to_what_the_whole_comes_to() -> None:
    found = case(dtype=torch.float64)
    whole, parted = (Objective(found.target, ALONE, images_at_once=count) for count in (0, 1))
    images = (found.truth + 0.2).requires_grad_()
    terms = [objective.terms(images)["total"] for objective in (whole, parted)]
    torch.testing.assert_close(terms[1], terms[0], rtol=1e-9, atol=1e-12)
    derivatives = [torch.autograd.grad(term, images)[0] for term in terms]
    torch.testing.assert_close(derivatives[1], derivatives[0], rtol=1e-9, atol=1e-12)
    assert parted.gradient_loss(images.detach()) == pytest.approx(whole.gradient_loss(images.detach()), rel=1e-9)

"""The input of a block that its own convolutions' gradients are too small for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradinversion.peeling.refusals import Why
from gradinversion.peeling.rules import annealed, engine, settled
from gradinversion.peeling.rules import fractional_units as fractional
from gradinversion.peeling.rules import segment_input as rule
from gradinversion.peeling.rules.effort import Effort
from gradinversion.peeling.rules.fractional_units import fractional_units
from gradinversion.peeling.rules.knowledge import Knowledge
from gradinversion.peeling.rules.linearised import Linearised
from gradinversion.peeling.rules.rule import Derived, Setting
from gradinversion.peeling.rules.segment import End, Segment, find_segment
from gradinversion.peeling.rules.segment_input import segment_input
from gradinversion.peeling.rules.segment_preconditioner import by_places, by_places_operations, places_matrix
from gradinversion.peeling.rules.switched_units import with_switched
from torch import nn

Cases = Callable[..., Any]


@pytest.fixture(scope="module")
def narrow(residual_network: Callable[..., nn.Sequential]) -> Callable[..., nn.Sequential]:
    """A network with a narrow block of many places in front: its inner value has more places than equations."""
    from .conftest import Block

    def make(seed: int, channels: int = 16, pooled: bool = False) -> nn.Sequential:
        torch.manual_seed(seed)
        stem: list[nn.Module] = [nn.Conv2d(3, channels, 3, 1, 1), nn.ReLU()]
        if pooled:
            stem.append(nn.MaxPool2d(3, 1, 1))
        model = nn.Sequential(*stem, Block(channels, channels, 1), *residual_network(seed, stem=channels, wide=80)[2:])
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.7, 1.3)
                nn.init.normal_(module.bias, 0, 0.1)
        return model.eval()

    return make


@pytest.mark.parametrize(("seed", "pooled"), [(0, False), (2, True)])
def test_the_input_of_a_block_with_too_few_equations_is_exact(
    residual_case: Cases, narrow: Callable[..., nn.Sequential], seed: int, pooled: bool
) -> None:
    case = residual_case(3, seed, narrow(seed, pooled=pooled))
    derivation = case.derived()
    steps = {step.rule: step for step in derivation.steps}
    assert "segment input" in steps, [one.words for one in derivation.refused]
    step = steps["segment input"]
    true = case.errors(step.value, derivation.knowledge.activations[step.value].values)
    assert max(true) < 1e-4
    for stated, error in zip(step.error, true, strict=True):
        assert stated > error / 10


def test_gradients_that_are_off_are_not_explained(residual_case: Cases, narrow: Callable[..., nn.Sequential]) -> None:
    case = residual_case(3, 0, narrow(0))
    name = next(name for name in case.gradients if name.endswith("conv1.weight"))
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(case.gradients[name].shape, generator=random)
    case.gradients[name] += 0.3 * case.gradients[name].square().mean().sqrt() * noise
    derivation = case.derived()
    assert "segment input" not in {step.rule for step in derivation.steps}
    assert any(one.rule == "segment input" and one.why is Why.INEXACT for one in derivation.refused)


def test_more_unknowns_than_equations_are_refused(residual_case: Cases, narrow: Callable[..., nn.Sequential]) -> None:
    case = residual_case(4, 0, narrow(0))
    for name in list(case.gradients):
        if name.startswith("2."):
            del case.gradients[name]
    derivation = case.derived()
    refused = [one for one in derivation.refused if one.rule == "segment input"]
    assert [one.why for one in refused] == [Why.FEW_EQUATIONS]
    assert refused[0].places == 256


@pytest.fixture(scope="module")
def in_front_of_a_segment(
    residual_case: Cases, narrow: Callable[..., nn.Sequential]
) -> tuple[Any, Setting, Knowledge, End]:
    """A case, what is known of it before a segment's input is looked for, and the segment's end."""
    case = residual_case(3, 0, narrow(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "RULES", tuple(rule for rule in engine.RULES if rule is not segment_input))
        known = case.derived().knowledge
    setting = Setting(case.graph, case.gradients, 3, 3e-2)
    segment = find_segment(setting, known)
    assert segment is not None
    (end,) = segment.ends
    return case, setting, known, end


def test_units_of_the_segments_end_go_back_to_their_side_with_the_derivative_in_front(
    in_front_of_a_segment: tuple[Any, Setting, Knowledge, End],
) -> None:
    case, setting, known, end = in_front_of_a_segment
    value = known.activations[end.rectifier].values
    # The smallest of the units that the derivative goes through, which were open.
    heard = known.units[end.rectifier].is_open & (end.passed.abs() > 0.1 * end.passed.abs().amax())
    wrong = torch.zeros_like(heard).flatten()
    wrong[torch.where(heard, value, torch.inf).flatten().argsort()[:2]] = True
    planted = with_switched(setting, known, end.rectifier, wrong.reshape(heard.shape))
    assert end.before not in planted.arriving
    (found,) = segment_input(setting, planted)
    assert isinstance(found, Derived), found
    assert found.checks["switched"] == 2
    assert torch.equal(found.knowledge.units[end.rectifier].is_open, known.units[end.rectifier].is_open)
    assert end.before not in found.knowledge.arriving
    assert bool((found.knowledge.activations[end.rectifier].values.flatten()[wrong] > 0).all())
    assert max(case.errors(found.value, found.knowledge.activations[found.value].values)) < 1e-4


def test_the_input_is_known_better_than_the_outputs_that_are_known_less_well_than_the_gradients(
    in_front_of_a_segment: tuple[Any, Setting, Knowledge, End],
) -> None:
    case, setting, known, end = in_front_of_a_segment
    output, error = known.activations[end.rectifier], 1e-3
    spread = error * output.values.square().mean().sqrt() * known.units[end.rectifier].is_open
    noise = torch.randn(output.values.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    off = replace(output, values=(output.values + spread * noise).clamp_min(0), deviation=spread)
    (found,) = segment_input(setting, known.with_activations(end.rectifier, off))
    assert isinstance(found, Derived), found
    true = case.errors(found.value, found.knowledge.activations[found.value].values)
    assert max(true) < 0.3 * error


def test_shares_of_units_bring_the_input_near_and_show_units_of_the_end_that_are_wrong(
    in_front_of_a_segment: tuple[Any, Setting, Knowledge, End],
) -> None:
    case, setting, known, end = in_front_of_a_segment
    heard = known.units[end.rectifier].is_open & (end.passed.abs() > 0.1 * end.passed.abs().amax())
    wrong = torch.zeros_like(heard).flatten()
    wrong[torch.where(heard, known.activations[end.rectifier].values, torch.inf).flatten().argsort()[:2]] = True
    segment = find_segment(setting, with_switched(setting, known, end.rectifier, wrong.reshape(heard.shape)))
    assert segment is not None
    (found,) = segment_input(setting, known)
    assert isinstance(found, Derived)
    true = found.knowledge.activations[segment.value].values.float()
    noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    start = (true + 0.02 * true.square().mean().sqrt() * noise).clamp_min(0)
    opened, nearer, error = fractional_units(segment, start)
    before, after = (max(case.errors(segment.value, one.double())) for one in (start, nearer))
    assert after < 0.02 * before
    assert error < 0.01
    assert torch.equal(opened.ends[0].is_open, known.units[end.rectifier].is_open)


def test_behind_shares_units_are_set_in_as_many_rounds_as_are_affordable(
    in_front_of_a_segment: tuple[Any, Setting, Knowledge, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, setting, known, _ = in_front_of_a_segment
    rounds, iterations, shared = list[int](), list[int](), list[str]()
    settle = settled.settled

    def counted(segment: Segment, start: torch.Tensor, error: float = 1e-2, most: int = settled.ROUNDS) -> Any:
        found = settle(segment, start, error, most)
        rounds.append(most)
        iterations.append(found.iterations)
        return found

    def with_shares(segment: Segment, start: torch.Tensor) -> Any:
        shared.append(segment.value)
        return fractional_units(segment, start)

    # As if units set at once left too much.
    monkeypatch.setattr(rule, "_CLEAN", 0.0)
    monkeypatch.setattr(settled, "settled", counted)
    monkeypatch.setattr(fractional, "fractional_units", with_shares)
    segment = find_segment(setting, known)
    assert segment is not None
    # No more than units set at once take: nothing is left for shares.
    (found,) = segment_input(replace(setting, effort=Effort(rule._operations(segment))), known)
    assert isinstance(found, Derived), found
    assert rounds == [settled.ROUNDS]
    assert shared == []
    each = rule._runs(segment)
    shares = (each + by_places_operations(segment)) * fractional.ITERATIONS
    needed = each * (annealed.ITERATIONS + iterations[0] + settled.most_iterations(4)) + shares
    (found,) = segment_input(replace(setting, effort=Effort(needed + 1)), known)
    assert isinstance(found, Derived), found
    assert rounds[1:] == [settled.ROUNDS, 4]
    assert shared == [found.value]
    assert max(case.errors(found.value, found.knowledge.activations[found.value].values)) < 1e-4


@pytest.fixture
def entered(in_front_of_a_segment: tuple[Any, Setting, Knowledge, End]) -> tuple[Segment, torch.Tensor]:
    """A segment, and any input of it."""
    _, setting, known, _ = in_front_of_a_segment
    segment = find_segment(setting, known)
    assert segment is not None
    return segment, torch.rand(segment.shape, generator=torch.Generator().manual_seed(0))


def test_the_matrix_over_places_is_what_the_first_convolutions_gradient_holds_of_each_channel(
    entered: tuple[Segment, torch.Tensor],
) -> None:
    segment, entering = entered
    hard = segment.run(entering, lambda _, value: value.clamp_min(0))
    is_open = {name: hard[name] > 0 for name in segment.rectifiers}
    opened = [end.is_open for end in segment.ends]

    def rectify(name: str, value: torch.Tensor) -> torch.Tensor:
        return value * is_open[name]

    matrix = places_matrix(segment, entering, rectify, opened)
    assert matrix is not None
    nodes = segment.graph.by_name
    (position,) = [
        at
        for at, one in enumerate(segment.given)
        if one.gradient.dim() > 1 and nodes[one.node].inputs == (segment.value,)
    ]
    length = segment.given[position].gradient.norm()
    near = Linearised(lambda value: segment.told(value, rectify, opened)[1][position] / length, entering)
    move = torch.zeros(segment.shape)
    move[:, 3] = torch.randn(move[:, 3].shape, generator=torch.Generator().manual_seed(1))
    rows = move[:, 3].flatten()
    torch.testing.assert_close(near.forth(move).square().sum(), rows @ matrix @ rows, rtol=1e-3, atol=0)
    back = by_places(matrix, 1.0, segment.shape)(near.normal(move) + 0.1 * move)
    torch.testing.assert_close(back, move, rtol=1e-2, atol=1e-2)


def test_an_end_that_no_reader_of_the_input_leads_to_adds_nothing_to_the_matrix(
    entered: tuple[Segment, torch.Tensor],
) -> None:
    segment, entering = entered
    ones = torch.ones(segment.shape)
    # As behind batch norm and ReLU alone, where these stand in front of a block's first convolution.
    apart = replace(segment.ends[0], before=segment.value, passed=ones, is_open=ones > 0)

    def rectify(_: str, value: torch.Tensor) -> torch.Tensor:
        return value.clamp_min(0)

    opened = [end.is_open for end in segment.ends]
    expected = places_matrix(segment, entering, rectify, opened)
    found = places_matrix(replace(segment, ends=(apart, *segment.ends)), entering, rectify, [apart.is_open, *opened])
    assert expected is not None
    assert found is not None
    torch.testing.assert_close(found, expected)
    assert places_matrix(replace(segment, ends=(apart,)), entering, rectify, [apart.is_open]) is None


def test_a_matrix_without_an_inverse_leaves_conjugate_gradients_as_they_are() -> None:
    values = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    for matrix, curvature in ((torch.zeros(4, 4), 0.0), (torch.full((4, 4), torch.nan), 1.0)):
        assert torch.equal(by_places(matrix, curvature, values.shape)(values), values)

"""The input of an inverted block that has more places than channels, from its known end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.graph import Graph, Node, network_graph
from gradinversion.peeling.kinds import Identity
from gradinversion.peeling.refusals import Refused, Why
from gradinversion.peeling.rules.effort import Effort
from gradinversion.peeling.rules.inverted_block import InvertedBlock, find_inverted
from gradinversion.peeling.rules.inverted_equations import Equations
from gradinversion.peeling.rules.inverted_input import inverted_input
from gradinversion.peeling.rules.knowledge import Knowledge, evenly
from gradinversion.peeling.rules.rule import Derived, Setting
from torch import Tensor, nn

ERROR = 1e-7


class Inverted(nn.Module):
    """A stem, one inverted block and a head."""

    def __init__(self, act: type[nn.Module], stride: int, leaving: int, kernel: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.BatchNorm2d(8))
        self.expand, self.bn1 = nn.Conv2d(8, 48, 1, bias=False), nn.BatchNorm2d(48)
        self.depthwise = nn.Conv2d(48, 48, kernel, stride, kernel // 2, groups=48, bias=False)
        self.bn2 = nn.BatchNorm2d(48)
        self.project, self.bn3 = nn.Conv2d(48, leaving, 1, bias=False), nn.BatchNorm2d(leaving)
        self.act, self.skips = act(), stride == 1 and leaving == 8
        self.final = nn.Linear(leaving, 6)

    def forward(self, images: Tensor) -> Tensor:
        entering = self.stem(images)
        inner = self.act(self.bn2(self.depthwise(self.act(self.bn1(self.expand(entering))))))
        leaving = self.bn3(self.project(inner))
        leaving = leaving + entering if self.skips else leaving
        return self.final(leaving.square().mean((2, 3)))


def _case(model: Inverted, count: int = 2) -> tuple[Setting, dict[str, Tensor], dict[str, Tensor]]:
    """The setting, true values and true derivatives by them."""
    random = torch.Generator().manual_seed(2)
    images = torch.randn(count, 3, 8, 8, generator=random)
    model(images)  # statistics are those of the values
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model(images)
    model.eval()
    loss = F.cross_entropy(model(images), torch.arange(count))
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    graph = network_graph(model, (3, 8, 8), BatchNormMode.EVAL, count)
    assert isinstance(graph, Graph)
    kept: dict[str, Tensor] = {}
    exact = model.double()
    captured = {
        name: module.register_forward_hook(lambda _, __, value, name=name: kept.update({name: value}))
        for name, module in exact.named_modules()
        if name in ("stem", "bn2", "bn3")
    }
    value = exact(images.double())
    for hook in captured.values():
        hook.remove()
    leaving = kept["bn3"] + kept["stem"] if exact.skips else kept["bn3"]
    hidden = exact.act(kept["bn2"])
    truth = {"entering": kept["stem"], "hidden": hidden, "leaving": leaving}
    again = exact.final(leaving.square().mean((2, 3)))
    loss = F.cross_entropy(again, torch.arange(count))
    by_leaving, by_norm = torch.autograd.grad(loss, [leaving, kept["bn3"]])
    by_hidden = torch.autograd.grad(exact.bn3(exact.project(hidden)), hidden, by_norm)[0]
    assert value.shape == again.shape
    derivatives = {"hidden": by_hidden, "leaving": by_leaving}
    model.float()
    return Setting(graph, gradients, count, 3e-2), truth, derivatives


def _known(setting: Setting, truth: dict[str, Tensor], derivatives: dict[str, Tensor], end: str) -> Knowledge:
    """With the block's end, and nothing in front of it."""
    graph = setting.graph
    inner = graph.by_name["project"].inputs[0]
    added = [node.name for node in graph.readers("bn3") if set(node.inputs) == {"bn3", "stem.1"}]
    name = inner if end == "hidden" else (added or ["bn3"])[0]
    error = torch.full((setting.image_count,), ERROR, dtype=torch.float64)
    found = Knowledge().with_activations(name, evenly(truth[end].detach(), error, "test"))
    found = found.with_arriving(name, evenly(derivatives[end].detach(), error, "test"))
    if end == "hidden":
        units = graph.by_name[inner].kind.units(truth[end].detach(), torch.full_like(truth[end], 1e-9))
        assert units is not None
        found = found.with_units(inner, units)
    return found


@pytest.mark.parametrize(
    ("act", "stride", "leaving", "end"),
    [(nn.ReLU6, 2, 12, "hidden"), (nn.ReLU, 1, 8, "leaving")],
)
def test_what_enters_a_block_follows_from_its_end(act: type[nn.Module], stride: int, leaving: int, end: str) -> None:
    torch.manual_seed(0)
    setting, truth, derivatives = _case(Inverted(act, stride, leaving))
    known = _known(setting, truth, derivatives, end)
    (found,) = inverted_input(setting, known)
    assert isinstance(found, Derived), found
    assert found.value == "stem.1"
    entering = found.knowledge.activations["stem.1"]
    true = truth["entering"].detach()
    off = (entering.values - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)
    assert float(off.max()) < 1e-4
    assert bool((entering.error >= off / 10).all())
    assert found.checks["contradiction"] < 1e-4
    assert found.checks["places"] == 32


def test_a_derivative_that_is_another_one_is_not_believed() -> None:
    torch.manual_seed(0)
    setting, truth, derivatives = _case(Inverted(nn.ReLU, 1, 8))
    derivatives["leaving"] = derivatives["leaving"] + 0.1 * derivatives["leaving"].flip(0)
    (found,) = inverted_input(setting, _known(setting, truth, derivatives, "leaving"))
    assert isinstance(found, Refused)
    assert found.why in (Why.OPEN, Why.INEXACT)


def test_few_equations_and_their_cost_are_said() -> None:
    torch.manual_seed(0)
    setting, truth, derivatives = _case(Inverted(nn.ReLU, 1, 8))
    known = _known(setting, truth, derivatives, "leaving")
    few = {name: one for name, one in setting.gradients.items() if name not in ("expand.weight", "depthwise.weight")}
    few = {name: one for name, one in few.items() if name != "project.weight" and not name.startswith("bn")}
    (found,) = inverted_input(replace(setting, gradients=few), known)
    assert isinstance(found, Refused)
    assert found.why is Why.FEW_EQUATIONS
    (found,) = inverted_input(replace(setting, effort=Effort(1e6)), known)
    assert isinstance(found, Refused)
    assert found.why is Why.COST


def test_a_block_whose_input_is_known_or_whose_end_is_not_is_left_alone() -> None:
    torch.manual_seed(0)
    setting, truth, derivatives = _case(Inverted(nn.ReLU, 1, 8))
    assert not list(find_inverted(setting, Knowledge()))
    known = _known(setting, truth, derivatives, "leaving")
    (block,) = find_inverted(setting, known)
    assert (block.entering, block.skip is not None) == ("stem.1", True)
    error = torch.full((2,), ERROR, dtype=torch.float64)
    whole = known.with_activations("stem.1", evenly(truth["entering"].detach(), error, "test"))
    assert not list(find_inverted(setting, whole))


def test_functions_without_a_rectifier_are_no_such_block() -> None:
    torch.manual_seed(0)
    setting, truth, derivatives = _case(Inverted(nn.SiLU, 1, 8))
    assert not list(find_inverted(setting, _known(setting, truth, derivatives, "leaving")))


def _equations(setting: Setting, known: Knowledge, block: InvertedBlock) -> Equations:
    end, arriving = known.activations[block.end].values, known.arriving[block.end].values
    return Equations(setting, block, end, arriving, None, torch.float64)


def test_where_no_gradient_is_left_to_hold_it_against_nothing_is_solved() -> None:
    torch.manual_seed(0)
    setting, truth, derivatives = _case(Inverted(nn.ReLU, 1, 8))
    known = _known(setting, truth, derivatives, "leaving")
    frozen = {name: one for name, one in setting.gradients.items() if name not in ("bn1.weight", "bn2.weight")}
    (found,) = inverted_input(replace(setting, gradients=frozen, effort=Effort(0.0)), known)
    assert isinstance(found, Refused)
    assert found.why is Why.OPEN
    one = {name: gradient for name, gradient in setting.gradients.items() if name != "bn1.weight"}
    (found,) = inverted_input(replace(setting, gradients=one, effort=Effort(0.0)), known)
    assert isinstance(found, Refused)
    assert found.why is Why.COST


def test_what_follows_a_batch_norm_and_changes_nothing_leaves_its_gradient_to_hold_it_against() -> None:
    torch.manual_seed(0)
    setting, truth, derivatives = _case(Inverted(nn.ReLU, 1, 8))
    known = _known(setting, truth, derivatives, "leaving")
    (block,) = find_inverted(setting, known)
    same = Node("same", Identity(), (block.first[-1].name,), block.first[-1].shape)
    setting = replace(setting, graph=replace(setting.graph, nodes=(*setting.graph.nodes, same)))
    equations = _equations(setting, known, replace(block, first=(*block.first, same)))
    assert [at for at, _ in equations.unused] == [0, 1]
    scales = equations.told(truth["entering"].detach(), 0.0).scales
    for found, (_, given) in zip(scales, equations.unused, strict=True):
        torch.testing.assert_close(found, given, rtol=1e-3, atol=1e-5)


def test_a_batch_norm_without_a_shift_is_held_against_its_gradient_too() -> None:
    torch.manual_seed(0)
    model = Inverted(nn.ReLU, 1, 8)
    model.bn1.register_parameter("bias", None)
    setting, truth, derivatives = _case(model)
    known = _known(setting, truth, derivatives, "leaving")
    (block,) = find_inverted(setting, known)
    equations = _equations(setting, known, block)
    scales = equations.told(truth["entering"].detach(), 0.0).scales
    assert len(scales) == 2
    for found, (_, given) in zip(scales, equations.unused, strict=True):
        torch.testing.assert_close(found, given, rtol=1e-3, atol=1e-5)

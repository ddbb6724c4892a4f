from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.geometry import Geometry
from gradinversion.peeling.kinds import Convolution
from gradinversion.peeling.rules.equations import deviant, gradient_equations, solve
from gradinversion.peeling.rules.knowledge import Knowledge
from gradinversion.peeling.rules.mended_units import mended_units
from gradinversion.peeling.rules.passing import derivatives
from gradinversion.peeling.rules.rule import Setting
from torch import Tensor
from torch.nn.grad import conv2d_weight

Cases = Callable[..., Any]
INPUTS, OUTPUTS, SIDE = 6, 24, 5


def _equations(stride: int, spoilt: list[int]) -> tuple[Any, Tensor]:
    """Of a convolution of two images, with one unit of the spoilt channels' derivatives on the wrong side."""
    random = torch.Generator().manual_seed(stride)
    after = (SIDE - 1) // stride + 1
    entering = torch.randn(2, INPUTS, SIDE, SIDE, generator=random, dtype=torch.float64)
    cotangent = torch.randn(2, OUTPUTS, after, after, generator=random, dtype=torch.float64)
    cotangent *= torch.rand(cotangent.shape, generator=random) < 0.5
    kind = Convolution((3, 3), (stride, stride), (1, 1), (1, 1), 1)
    shape = (OUTPUTS, INPUTS, 3, 3)
    gradient = conv2d_weight(entering, shape, cotangent, **Geometry.keywords.fget(kind))  # type: ignore[attr-defined]
    believed = cotangent.clone()
    for channel in spoilt:
        place = int(believed[0, channel].abs().argmax())
        believed[0, channel].view(-1)[place] = 0
    return gradient_equations(kind, (SIDE, SIDE), gradient.float(), believed), entering


@pytest.mark.parametrize("spoilt", [[3], [0, 7, 23]])
def test_channels_with_a_unit_on_the_wrong_side_are_left_out(spoilt: list[int]) -> None:
    equations, entering = _equations(1, spoilt)
    found = solve([equations])
    assert found is not None
    assert (~found.kept[0]).nonzero()[:, 0].tolist() == spoilt
    assert found.left_out == len(spoilt)
    true = entering.permute(0, 2, 3, 1).reshape(-1, INPUTS)
    assert float((found.values - true).norm() / true.norm()) < 1e-5
    assert found.misfit < 1e-6
    assert float((found.deviation / true.square().mean().sqrt()).max()) < 1e-4


def test_of_channels_that_all_fit_none_is_left_out() -> None:
    equations, _ = _equations(1, [])
    found = solve([equations])
    assert found is not None
    assert found.left_out == 0


def test_where_most_channels_are_spoilt_all_are_kept_and_the_misfit_shows() -> None:
    equations, _ = _equations(1, list(range(16)))
    found = solve([equations])
    assert found is not None
    assert found.misfit > 1e-2


def test_a_channel_without_a_gradient_is_not_deviant() -> None:
    left, size = torch.tensor([1e-8, 1e-8, 1e-8, 1.0]), torch.tensor([1.0, 1.0, 0.0, 1.0])
    assert deviant(left, size).tolist() == [False, False, False, True]
    assert not bool(deviant(left, torch.zeros(4)).any())


def _spoilt(case: Any, rectifier: str, images: list[int]) -> tuple[Setting, Knowledge, Tensor]:
    """What was derived, with one unit of each of these images on the other side, and where they are right."""
    setting = Setting(case.graph, case.gradients, len(case.images), 3e-2)
    known = case.derived().knowledge
    units = known.units[rectifier]
    is_open = units.is_open.clone()
    for image in images:
        derivative = known.arriving[rectifier].values[image].abs()
        unit = (
            int((derivative * is_open[image]).argmax()) if image % 2 else int((derivative * ~is_open[image]).argmax())
        )
        is_open[image].view(-1)[unit] ^= True
    stale = case.graph.before(case.graph.by_name[rectifier].inputs[0])
    arriving = {name: one for name, one in known.arriving.items() if name not in stale}
    wrong = replace(
        known.with_units(rectifier, replace(units, is_open=is_open)), arriving=arriving, examined=frozenset()
    )
    while (more := next(derivatives(setting, wrong), None)) is not None:
        wrong = more.knowledge
    return setting, wrong, units.is_open


@pytest.mark.parametrize(("convolution", "reader"), [("3.conv1", "3.conv2"), ("4.conv1", "4.conv2")])
def test_units_are_mended_by_the_gradient_in_front(residual_case: Cases, convolution: str, reader: str) -> None:
    case = residual_case(3)
    rectifier = case.graph.by_name[reader].inputs[0]
    setting, wrong, right = _spoilt(case, rectifier, [0, 1])
    assert not torch.equal(wrong.units[rectifier].is_open, right)
    mended = [one for one in mended_units(setting, wrong) if one.rule == "units mended"]
    assert [one.value for one in mended] == [rectifier]
    assert mended[0].checks == {"switched": 2.0}
    after = mended[0].knowledge
    assert torch.equal(after.units[rectifier].is_open, right)
    assert torch.equal(after.activations[rectifier].values > 0, right)
    # What came of the wrong units is made again.
    assert convolution not in after.arriving
    assert rectifier in after.arriving


def test_units_behind_batch_statistics_are_mended_too(residual_case: Cases, residual_network: Cases) -> None:
    model = residual_network(0, normed_skips=True)
    case = residual_case(2, 0, model, BatchNormMode.TRAIN_PRIVATE)
    rectifier = case.graph.by_name["4.conv2"].inputs[0]
    setting, wrong, right = _spoilt(case, rectifier, [0, 1])
    mended = [one for one in mended_units(setting, wrong) if one.rule == "units mended"]
    assert [one.value for one in mended] == [rectifier]
    assert torch.equal(mended[0].knowledge.units[rectifier].is_open, right)


def test_where_all_units_are_right_convolutions_are_looked_at_once(residual_case: Cases) -> None:
    case = residual_case(2)
    known = case.derived().knowledge
    assert list(mended_units(Setting(case.graph, case.gradients, 2, 3e-2), known)) == []
    assert {"2.conv1", "3.conv1"} <= known.examined

"""Gradients that sum the cotangent up: wrong units of a ReLU are found by them, or the error is stated."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gradinversion.peeling.checksums import ChannelSum, error_shown, settle, stored
from gradinversion.peeling.units import Units, estimate_units
from torch import Tensor

_UNCERTAINTY = 1e-6


class _Layer:
    """Three images' ReLU of 8 channels and 4 x 4 places, most of whose units are far from zero, and what sums it up."""

    def __init__(self, seed: int = 0, noise: float = 0.0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.values = self._normal(3, 8, 4, 4)
        self.cotangent = self._normal(3, 8, 4, 4)
        self.noise = noise

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random, dtype=torch.float64)

    def sums(self, constant: float | None = None) -> list[ChannelSum]:
        """The sum of the cotangent, or of its products with values whose ReLU's zero is at a constant."""
        terms = self.cotangent.flatten(2)
        if constant is not None:
            terms = terms * (self.values.clamp_min(0).flatten(2) - constant)
        total = (terms * self.is_open.flatten(2)).sum(dim=(0, 2))
        total = total + self.noise * self._normal(len(total))
        return [ChannelSum(total, terms, 1e-12 * total.abs(), needs_activations=constant is not None)]

    @property
    def is_open(self) -> Tensor:
        return self.values > 0

    def judged(self, *wrong: tuple[int, int, int, int]) -> Units:
        """What peeling makes of the recovered activations, with these units, near zero, on the wrong side."""
        recovered = self.values.clamp_min(0) + _UNCERTAINTY / 4 * self._normal(3, 8, 4, 4)
        for unit in wrong:
            recovered[unit] = -0.5 * _UNCERTAINTY if self.is_open[unit] else 10 * _UNCERTAINTY
        units = estimate_units(recovered, torch.full_like(recovered, _UNCERTAINTY))
        assert int((units.is_open != self.is_open).sum()) == len(wrong)
        return units

    def error(self, units: Units) -> float:
        """The true one."""
        truth = self.cotangent * self.is_open
        return float((self.cotangent * units.is_open - truth).norm() / truth.norm())


def _units(layer: _Layer, is_open: bool, count: int, channel: int | None = None) -> list[tuple[int, int, int, int]]:
    found = (layer.is_open == is_open).nonzero().tolist()
    return [(a, b, c, d) for a, b, c, d in found if channel is None or b == channel][:count]


@pytest.mark.parametrize("constant", [None, -0.7], ids=["of a bias", "of a batch norm's weight"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("was_open", [True, False], ids=["open taken for shut", "shut taken for open"])
def test_a_wrong_unit_is_found_and_switched(seed: int, was_open: bool, constant: float | None) -> None:
    layer = _Layer(seed)
    units = layer.judged(*_units(layer, was_open, 1))
    assert layer.error(units) > 1e-3
    settled = settle(layer.sums(constant), layer.cotangent, units)
    assert torch.equal(settled.units.is_open, layer.is_open)
    assert settled.error < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_two_wrong_units_of_a_channel_and_one_of_another(seed: int) -> None:
    layer = _Layer(seed)
    wrong = [*_units(layer, False, 2, channel=3), *_units(layer, False, 1, channel=5)]
    settled = settle(layer.sums(), layer.cotangent, layer.judged(*wrong))
    assert torch.equal(settled.units.is_open, layer.is_open)
    assert settled.error < 1e-6


@pytest.mark.parametrize("first", [True, False], ids=["open", "shut"])
@pytest.mark.parametrize("second", [True, False], ids=["open", "shut"])
def test_two_units_whose_terms_cancel_stay_in_doubt(first: bool, second: bool) -> None:
    layer = _Layer()
    pair = [(0, 2, 1, 1), (1, 2, 3, 0)]
    layer.cotangent[pair[0]], layer.cotangent[pair[1]] = 0.8, -0.8
    layer.values[pair[0]], layer.values[pair[1]] = (1.0 if is_open else -1.0 for is_open in (first, second))
    believed, wrong = layer.is_open.clone(), torch.full_like(layer.values, 1e-9)
    for unit, probability in zip(pair, (0.4, 0.1), strict=True):
        believed[unit], wrong[unit] = True, probability
    settled = settle(layer.sums(), layer.cotangent, Units(believed, wrong, torch.ones_like(believed)))
    assert settled.error >= layer.error(settled.units) / 10
    if (
        first == second
    ):  # both open and both shut are one sum: the odds are the root of those of the two, 9 x 6 to 1 x 4
        assert bool(settled.units.is_open[pair[0]])
        assert float(settled.units.wrong[pair[0]]) == pytest.approx(2 / (2 + 54**0.5))
        assert float(settled.units.wrong[pair[1]]) == pytest.approx(2 / (2 + 54**0.5))
    else:
        assert torch.equal(settled.units.is_open, layer.is_open)
        assert settled.error < 1e-6


def test_units_that_seem_open_by_ten_uncertainties_may_be_switched_and_by_thirty_not() -> None:
    recovered = torch.tensor([[-0.5, 1.9, 10.0, 19.0, 30.0, 1e6]], dtype=torch.float64) * _UNCERTAINTY
    units = estimate_units(recovered, torch.full_like(recovered, _UNCERTAINTY))
    assert units.is_open[0, 2:].all()
    assert units.doubtful.tolist() == [[True, True, True, True, False, False]]


def test_several_factorisations_into_channels_are_used_in_turn() -> None:
    layer = _Layer()
    (one,) = layer.sums()
    each = layer.cotangent.reshape(3, -1, 1)
    unit_by_unit = ChannelSum(
        (each * layer.is_open.reshape(3, -1, 1)).sum(dim=(0, 2)), each, torch.zeros(each.shape[1]).double()
    )
    wrong = _units(layer, False, 12)
    settled = settle([unit_by_unit, one], layer.cotangent, layer.judged(*wrong))
    assert torch.equal(settled.units.is_open, layer.is_open)


def test_what_no_unit_explains_is_stated() -> None:
    layer = _Layer()
    (one,) = layer.sums()
    off = one.total.clone()
    off[2] += 0.6180339
    settled = settle([replace(one, total=off)], layer.cotangent, layer.judged())
    assert torch.equal(settled.units.is_open, layer.is_open)
    size = float((layer.cotangent * layer.is_open).norm())
    assert settled.error == pytest.approx(0.618 / size, rel=0.01)


def test_what_many_units_would_explain_is_left_and_stated() -> None:
    # With so rough a sum, a unit that fits is found by chance.
    layer = _Layer()
    (one,) = layer.sums()
    rough = replace(one, rounding=torch.full_like(one.total, 0.05))
    (wrong,) = _units(layer, False, 1, channel=3)
    units = layer.judged(wrong)
    settled = settle([rough], layer.cotangent, units)
    assert torch.equal(settled.units.is_open, units.is_open)
    assert settled.error >= 0.9 * layer.error(units) > 0


@pytest.mark.parametrize("noise", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_noise_switches_nothing(seed: int, noise: float) -> None:
    layer = _Layer(seed, noise)
    settled = settle(layer.sums(), layer.cotangent, layer.judged())
    assert torch.equal(settled.units.is_open, layer.is_open)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-2, 0.3])
def test_with_noise_too_the_error_is_switched_away_or_stated(seed: int, noise: float) -> None:
    layer = _Layer(seed, noise)
    (wrong,) = sorted(_units(layer, False, 99), key=lambda unit: -float(layer.cotangent[unit].abs()))[:1]
    settled = settle(layer.sums(), layer.cotangent, layer.judged(wrong))
    true = layer.error(settled.units)
    assert settled.error >= true / 10
    if noise < 1e-3:
        assert true == 0


def test_where_zero_is_zero_products_say_nothing() -> None:
    layer = _Layer()
    (wrong,) = _units(layer, False, 1)
    units = layer.judged(wrong)
    settled = settle(layer.sums(constant=0.0), layer.cotangent, units)
    assert torch.equal(settled.units.is_open, units.is_open)
    assert float(settled.units.wrong.sum()) == float(units.wrong.sum())


def test_without_a_sum_the_error_is_that_of_units_near_the_line() -> None:
    values = torch.rand(2, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values[:, ::2] = 0.0
    cotangent = torch.ones_like(values)
    errors = []
    for uncertainty in (1e-9, 1e-3, 1e-2):
        noise = torch.randn(values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        units = estimate_units(values + uncertainty / 4 * noise, torch.full_like(values, uncertainty))
        error = settle([], cotangent, units).error
        true = float((units.is_open != (values > 0)).sum() / (values > 0).sum()) ** 0.5
        assert error >= true / 3
        errors.append(error)
    assert errors[0] == 0
    assert 0.01 < errors[1] < errors[2] < 0.5


def test_a_cotangent_that_is_zero_is_no_knowledge() -> None:
    layer = _Layer()
    units = layer.judged()
    assert error_shown([], torch.zeros_like(layer.cotangent), units) == float("inf")


def test_activations_that_are_no_numbers_open_nothing() -> None:
    units = estimate_units(torch.full((1, 3), float("nan"), dtype=torch.float64), torch.ones(1, 3).double())
    assert not units.is_open.any()
    assert settle([], torch.ones(1, 3).double(), units).error == float("inf")


def test_a_type_with_few_digits_rounds() -> None:
    values, off = stored(torch.tensor([1.0, 2.0, 0.0]).half())
    assert values.dtype is torch.float64
    assert off[1] == pytest.approx(2 * 2**-10, rel=1e-3)
    assert 0 < float(off[2]) < 1e-7

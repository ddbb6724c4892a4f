from __future__ import annotations

import torch
from gradinversion.peeling.kinds import Rectifier


def test_a_ceiling_holds_units_back_as_zero_does() -> None:
    output = torch.tensor([-1e-7, 1e-7, 0.5, 3.0, 5.5, 6.0 - 1e-7, 6.0 + 1e-7], dtype=torch.float64).repeat(20, 1)
    units = Rectifier(6.0).units(output, torch.full_like(output, 1e-6))
    assert units is not None
    assert units.is_open[0].tolist() == [False, False, True, True, True, False, False]
    assert Rectifier(6.0).held(output)[0].tolist() == [0, 0, 0, 0, 6, 6, 6]


def test_units_of_a_ceiling_that_none_reaches_are_those_of_a_relu() -> None:
    output = torch.linspace(-1e-6, 3, 200, dtype=torch.float64).reshape(1, -1)
    uncertainty = torch.full_like(output, 1e-5)
    one, other = Rectifier(6.0).units(output, uncertainty), Rectifier().units(output, uncertainty)
    assert one is not None
    assert other is not None
    assert torch.equal(one.is_open, other.is_open)
    assert torch.equal(one.wrong, other.wrong)
    assert not bool(Rectifier().held(output).any())

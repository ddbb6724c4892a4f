from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradinversion.peeling.rules.knowledge import Knowledge, evenly
from gradinversion.peeling.rules.open_units import open_units
from gradinversion.peeling.rules.rule import Setting

TOLERANCE = 3e-2


@pytest.mark.parametrize(("error", "found"), [(1e-6, 1), (TOLERANCE / 2, 1), (TOLERANCE * 2, 0), (3.0, 0)])
def test_units_are_told_only_of_an_output_that_may_be_believed(
    error: float, found: int, residual_case: Callable[..., Any]
) -> None:
    """Else all units of a rectifier behind dead channels came out shut, with certainty: its error was that of these."""
    case = residual_case(2)
    rectifier = case.graph.by_name["4.conv2"].inputs[0]
    stated = torch.full((2,), error, dtype=torch.float64)
    output = evenly(case.truth[rectifier], stated, "told")
    arriving = evenly(torch.ones_like(case.truth[rectifier]), 1e-6 * torch.ones_like(stated), "told")
    known = Knowledge(activations={rectifier: output}, arriving={rectifier: arriving})
    derived = list(open_units(Setting(case.graph, case.gradients, 2, TOLERANCE), known))
    assert [one.value for one in derived] == [rectifier] * found

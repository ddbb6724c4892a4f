"""In `make test` jaxtyping checks the arrays that the package passes on: a wrong shape fails where it enters."""

from __future__ import annotations

from typing import Any

import jaxtyping
import pytest
import torch
from gradinversion.peeling import PeelingConfig
from gradinversion.priors import total_variation
from gradinversion.registration import RegistrationError, register

BATCH = torch.zeros(2, 3, 8, 8)


@pytest.fixture(autouse=True)
def _shapes_are_asked_for(pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("jaxtyping_packages"):
        pytest.skip("only with --jaxtyping-packages, as in make test and make unit")


def test_a_wrong_number_of_axes_is_an_error_in_the_package() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="total_variation"):
        total_variation(BATCH[0])
    total_variation(BATCH)


def test_a_wrong_type_of_number_is_an_error_too() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="total_variation"):
        total_variation(BATCH.to(torch.uint8))


def test_what_is_no_array_is_left_to_mypy() -> None:
    """Tests pass stand-ins where the annotation names a class."""
    stand_in: Any = "not a number"
    with pytest.raises(TypeError, match="not supported between"):
        PeelingConfig(tolerance=stand_in)


def test_what_states_no_array_is_not_wrapped_and_costs_nothing() -> None:
    assert not hasattr(PeelingConfig.__post_init__, "__wrapped__")
    assert hasattr(total_variation, "__wrapped__")


@pytest.mark.wrong_shapes
def test_the_package_itself_gets_what_a_test_gives_wrong_on_purpose() -> None:
    with pytest.raises(RegistrationError, match="one size"):
        register([BATCH[:, None], BATCH[:, None, ..., :4]])  # type: ignore[arg-type]

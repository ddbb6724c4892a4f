from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypedDict

import pytest
import torch
from gradinversion.storage.schema import misfit
from jaxtyping import Float, Int
from torch import Tensor


class Colour(Enum):
    RED = "red"


WRONG: Any = "red"
NOTHING: Any = None


class Entry(TypedDict):
    name: str


class Longer(Entry, total=False):
    seed: int


@dataclass
class Inner:
    images: Float[Tensor, "batch side"]
    colour: Colour | None = None


@dataclass
class Outer:
    inner: tuple[Inner, ...]
    numbers: dict[str, float]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, int),
        (1, float),
        (1.5, float | None),
        (None, float | None),
        ("a", str),
        ({"a": [1, "x"]}, Any),
        ({"a": 1.0}, dict[str, float]),
        ({"a": 1.0}, Mapping[str, float]),
        ((1, "a"), tuple[int, str]),
        ((), tuple[int, ...]),
        ({"name": "x"}, Longer),
        ({"name": "x", "seed": 1}, Longer),
        (torch.zeros(2, 3), Float[Tensor, "a b"]),
        (Outer((Inner(torch.zeros(1, 1), Colour.RED),), {"a": 1}), Outer),
    ],
)
def test_what_fits(value: Any, kind: Any) -> None:
    assert misfit(value, kind) is None


@pytest.mark.wrong_shapes
@pytest.mark.parametrize(
    ("value", "kind", "where"),
    [
        (True, int, "it is a bool and no int"),
        (2**64, int, "it is a int and no int"),
        (10**400, float, "it is a int and no float"),
        ("1", int, "it is a str"),
        ({1: 1.0}, dict[str, float], "it is a int"),
        ([1], tuple[int, ...], "it is a list"),
        ((1,), tuple[int, str], "it has 1 entries and not 2"),
        ({"seed": 1}, Longer, "does not have the entries name, seed"),
        ({"name": "x", "more": 1}, Longer, "does not have the entries"),
        ({"name": 3}, Longer, "it.name is a int"),
        ("red", Colour, "it is a str and no Colour"),
        (torch.zeros(2, dtype=torch.int64), Float[Tensor, " a"], "it is a Tensor"),
        (torch.zeros(2), Int[Tensor, " a"], "it is a Tensor"),
        (torch.zeros(2), Float[Tensor, "a b"], "it is a Tensor"),
        (Outer((Inner(torch.zeros(1, 1), WRONG),), {}), Outer, "it.inner.colour is a str"),
        (Outer((), {"a": NOTHING}), Outer, "it.numbers is a NoneType"),
    ],
)
def test_what_does_not_fit_is_told_by_its_place(value: Any, kind: Any, where: str) -> None:
    found = misfit(value, kind)
    assert found is not None
    assert where in found

"""Another kind of layer is a class and a line in the table: the chain passes it with nothing else told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from gradinversion.peeling import kinds, peel
from gradinversion.peeling.kinds import Kind, Layer, ModuleCall, Needs, Told
from torch import Tensor, nn


class _Tanh(nn.Module):
    """Stands for a layer whose output tells input and derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return x.tanh()


@dataclass(frozen=True)
class _TanhKind(Kind):
    needs = Needs.OUTPUT

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        return inputs[0].tanh()

    def cotangents(self, arriving: Tensor, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> list[Tensor]:
        return [arriving * (1 - inputs[0].square())]

    def inverse(
        self, values: Tensor, spread: Tensor, tensors: Mapping[str, Tensor], others: Sequence[Told] = ()
    ) -> Told | None:
        return Told(values.atanh(), torch.ones_like(values, dtype=torch.bool), spread / (1 - values.square()))

    @classmethod
    def of_module(cls, call: ModuleCall) -> Layer | None:
        return Layer(cls())


def _model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 1, 1), _Tanh(), nn.Flatten(), nn.Linear(1024, 10)
    )


def test_an_unknown_layer_ends_the_chain(capture: Callable[..., Any]) -> None:
    case = capture(_model(), [4])
    anchor = peel(case.update, case.model, case.labels).anchor
    assert anchor is not None
    assert anchor.module == "5"


def test_one_that_is_in_the_table_is_passed(capture: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "MODULES", {**kinds.MODULES, _Tanh: _TanhKind})
    case = capture(_model(), [4])
    anchor = peel(case.update, case.model, case.labels).anchor
    assert anchor is not None
    assert anchor.module == "0"
    assert max(case.errors(anchor)) < 1e-4


def test_one_that_is_in_the_table_and_does_something_else_is_found_out(
    capture: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "MODULES", {**kinds.MODULES, _Tanh: kinds.Identity})
    case = capture(_model(), [4])
    anchor = peel(case.update, case.model, case.labels).anchor
    assert anchor is not None
    assert anchor.module == "5"

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gradinversion.capture import IMAGENET, BatchNormMode, LocalTraining, train_locally
from gradinversion.peeling.refusals import Why
from gradinversion.peeling.rows import LooseRows, NoRows, find_loose_rows
from gradinversion.peeling.visit_recovery import recover_visits
from gradinversion.peeling.wording import standing, summary
from torch import Tensor, nn

_TOLERANCE = 3e-2


def _visits(images: int, epochs: int, channels: int, moved: float, seed: int = 0) -> Tensor:
    """Features of places that are nearly alike in each epoch."""
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=random, dtype=torch.float64)

    first = normal(images, channels) - 0.4
    return torch.cat([(first + moved * normal(images, channels)).clamp_min(0) for _ in range(epochs)])


def _delta(
    rows: Tensor, outputs: int, rounded: float, seed: int = 1, strength: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """A sum over these rows, and the deviation of its entries, whose outputs and inputs are rounded differently."""
    random = torch.Generator().manual_seed(seed)
    cotangents = torch.randn(len(rows), outputs, generator=random, dtype=torch.float64) * strength
    sizes = torch.rand(outputs, 1, generator=random, dtype=torch.float64) + 0.5
    deviation = rounded * sizes * (torch.rand(rows.shape[1], generator=random, dtype=torch.float64) + 0.5)
    noise = deviation * torch.randn(deviation.shape, generator=random, dtype=torch.float64)
    return (cotangents.T @ rows + noise)[:, :, None, None], deviation[:, :, None, None]


@pytest.mark.parametrize(("epochs", "rounded"), [(1, 1e-5), (2, 1e-5), (2, 1e-3)])
def test_rows_are_those_of_visits_and_as_exact_as_is_stated(epochs: int, rounded: float) -> None:
    true = _visits(5, epochs, 200, 0.4)
    found = find_loose_rows(*_delta(true, 60, rounded), len(true), _TOLERANCE)
    assert isinstance(found, LooseRows)
    assert len(found.inputs) >= len(true) - 1
    directions = true / true.norm(dim=1, keepdim=True)
    which = (found.inputs @ directions.T).argmax(dim=1)
    assert len(set(which.tolist())) == len(which)
    apart = (found.inputs - directions[which]).norm(dim=1)
    assert float((apart / found.error).max()) < 3
    assert bool((found.inputs >= 0).all())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mixtures_of_visits_that_are_nearly_alike_are_no_rows(seed: int) -> None:
    true = _visits(2, 2, 150, 0.004, seed)
    assert find_loose_rows(*_delta(true, 60, 3e-6, seed + 10), len(true), _TOLERANCE) == NoRows(Why.ALIKE)


@pytest.mark.parametrize("seed", [1, 2])
def test_channels_that_only_weak_places_use_are_a_part_of_their_rows(seed: int) -> None:
    true, strength = _visits(4, 1, 112, 0.2, seed), torch.logspace(-2, 0, 4, dtype=torch.float64)[:, None]
    found = find_loose_rows(*_delta(true, 42, 4e-4, seed, strength), len(true), _TOLERANCE)
    assert isinstance(found, LooseRows)
    directions = true / true.norm(dim=1, keepdim=True)
    apart = (found.inputs - directions[(found.inputs @ directions.T).argmax(dim=1)]).norm(dim=1)
    assert float((apart / found.error).max()) < 3


def test_visits_that_differ_by_less_than_the_rounding_are_not_told_apart() -> None:
    true = _visits(5, 2, 200, 1e-4)
    assert find_loose_rows(*_delta(true, 60, 1e-2), len(true), _TOLERANCE) == NoRows(Why.RANK)


@pytest.mark.parametrize("told", [9, 11])
def test_another_number_of_places_than_the_delta_shows_is_refused(told: int) -> None:
    assert find_loose_rows(*_delta(_visits(5, 2, 200, 0.4), 60, 1e-4), told, _TOLERANCE) == NoRows(Why.RANK)


def test_rows_without_zeros_are_not_found() -> None:
    true = _visits(4, 2, 200, 0.4) + 1
    assert find_loose_rows(*_delta(true, 60, 1e-5), len(true), _TOLERANCE) == NoRows(Why.ALIKE)


def test_rows_worse_than_the_tolerance_are_not_told() -> None:
    gradient, deviation = _delta(_visits(5, 1, 200, 0.4), 60, 1e-3)
    assert find_loose_rows(gradient, deviation, 5, 1e-9) == NoRows(Why.INEXACT)


def test_a_delta_of_local_steps_tells_places_of_its_visits(phone_network: Callable[..., nn.Module]) -> None:
    model, random = phone_network(), torch.Generator().manual_seed(1)
    images, labels = torch.rand(2, 3, 8, 8, generator=random), torch.tensor([1, 4])
    local = LocalTraining(0.02, 1, 1)
    update = train_locally(model, images, labels, local=local, normalisation=IMAGENET, batch_norm=BatchNormMode.EVAL)
    found = recover_visits(update, model)
    assert found.record is not None
    loose = found.record.loose
    assert loose is not None
    assert loose.places == 8
    assert 4 <= loose.count <= 8
    assert max(loose.errors) < 1e-2
    assert loose.reader.endswith("project")
    assert "each up to its length" in found.message
    assert "of which visit, image and place each is does not show" in summary(found.record)
    assert [title for title, _ in standing(found.record)] == ["Exact", "From a prior"]

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gradinversion.peeling.refusals import Why
from gradinversion.peeling.rows import NoRows, Rows, block_ends, find_rows, place_lengths, place_order
from gradinversion.peeling.rows.column_space import open_by_columns
from torch import Tensor

Made = Callable[..., Tensor]
Neighbourhoods = Callable[..., tuple[Tensor, Tensor, Tensor]]


def _cotangents(places: int, outputs: int, seed: int = 9) -> Tensor:
    return torch.randn(places, outputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _nearest(found: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """The true row that each found one is of, and how far their directions are apart."""
    one, other = (rows / rows.norm(dim=1, keepdim=True) for rows in (found, true))
    which = (one @ other.T).argmax(dim=1)
    return which, (one - other[which]).norm(dim=1)


@pytest.mark.parametrize(("places", "channels"), [(1, 40), (2, 60), (12, 160), (24, 300)])
def test_every_row_is_found_and_none_is_a_mixture(relu6_rows: Made, places: int, channels: int) -> None:
    true = relu6_rows(places, channels, 0)
    gradient = (_cotangents(places, 40).T @ true).float()[:, :, None, None]
    found = find_rows(gradient, places)
    assert isinstance(found, Rows)
    which, apart = _nearest(found.inputs, true)
    assert sorted(which.tolist()) == list(range(places))
    assert float(apart.max()) < 1e-5
    assert bool((found.error >= apart / 10).all())
    assert found.zeros > 0.25
    assert found.alone > 10
    assert float((found.cotangents.T @ found.inputs - gradient[:, :, 0, 0]).norm() / gradient.norm()) < 1e-5


def test_channels_that_no_place_uses_are_zero_in_every_row(relu6_rows: Made) -> None:
    true = relu6_rows(6, 100, 0)
    true[:, 10:20] = 0
    found = find_rows((_cotangents(6, 30).T @ true).float(), 6)
    assert isinstance(found, Rows)
    assert not bool(found.inputs[:, 10:20].any())
    assert float(_nearest(found.inputs, true)[1].max()) < 1e-5


def test_a_place_that_occurs_twice_is_not_told_apart(relu6_rows: Made) -> None:
    true = relu6_rows(6, 100, 0)
    true[5] = true[4]
    found = find_rows((_cotangents(6, 30).T @ true).float(), 6)
    assert found == NoRows(Why.RANK)


def test_rows_without_zeros_are_not_told_apart(relu6_rows: Made) -> None:
    found = find_rows((_cotangents(6, 30).T @ (relu6_rows(6, 100, 0) + 1)).float(), 6)
    assert found == NoRows(Why.ALIKE)


@pytest.mark.parametrize("places", [31, 101])
def test_more_places_than_channels_are_refused(relu6_rows: Made, places: int) -> None:
    true = relu6_rows(places, 100, 0)
    assert find_rows((_cotangents(places, 30).T @ true).float(), places) == NoRows(Why.RANK)


def test_a_gradient_that_is_not_finite_is_refused(relu6_rows: Made) -> None:
    gradient = _cotangents(6, 30).T @ relu6_rows(6, 100, 0)
    gradient[3, 3] = float("nan")
    assert find_rows(gradient, 6) == NoRows(Why.RANK)


@pytest.mark.parametrize("ceiling", [6.0, float("inf")])
def test_lengths_follow_from_the_sum_of_the_derivative(relu6_rows: Made, ceiling: float) -> None:
    true = relu6_rows(8, 200, 1)
    if ceiling == float("inf"):
        true = torch.where(true == 6, 7.0 + true, true)
    cotangents = _cotangents(8, 48)
    weight = _cotangents(48, 200, seed=11)
    shift = ((cotangents @ weight) * ((true > 0) & (true < ceiling))).sum(dim=0)
    rows = find_rows((cotangents.T @ true).float(), 8)
    assert isinstance(rows, Rows)
    found = place_lengths(rows, weight, shift.float(), ceiling)
    assert found is not None
    which, _ = _nearest(found.inputs, true)
    assert float((found.inputs - true[which]).norm() / true.norm()) < 1e-5
    assert float((found.cotangents - cotangents[which]).norm() / cotangents.norm()) < 1e-5
    assert bool((found.is_open == ((true > 0) & (true < ceiling))[which]).all())
    assert found.misfit < 1e-5


def test_lengths_of_another_gradient_are_contradicted(relu6_rows: Made) -> None:
    rows = find_rows((_cotangents(8, 48).T @ relu6_rows(8, 200, 1)).float(), 8)
    assert isinstance(rows, Rows)
    found = place_lengths(rows, _cotangents(48, 200, seed=11), _cotangents(1, 200, seed=12)[0], 6.0)
    assert found is None or found.misfit > 0.1


def test_both_ends_of_a_block_follow_from_two_row_spaces() -> None:
    entering, added = _cotangents(10, 64, 1), _cotangents(10, 64, 2)
    one = _cotangents(10, 90, 3).T @ entering
    other = _cotangents(10, 80, 4).T @ (entering + added)
    found = block_ends(one.float(), other.float(), added)
    assert found is not None
    assert float((found.entering - entering).norm() / entering.norm()) < 1e-4
    assert float((found.leaving - entering - added).norm() / entering.norm()) < 1e-4
    true = (found.entering - entering).norm(dim=1) / entering.norm(dim=1)
    assert bool((found.error >= true / 10).all())


def test_the_ends_of_a_block_need_twice_as_many_channels_as_places() -> None:
    entering, added = _cotangents(10, 19, 1), _cotangents(10, 19, 2)
    assert block_ends(_cotangents(10, 90, 3).T @ entering, _cotangents(10, 80, 4).T @ (entering + added), added) is None


@pytest.mark.parametrize(
    ("images", "size", "kernel"), [(1, (1, 1), 3), (3, (1, 1), 5), (4, (2, 2), 5), (2, (3, 2), 3), (1, (4, 4), 3)]
)
def test_places_are_put_into_images_and_order(
    neighbourhoods: Neighbourhoods, images: int, size: tuple[int, int], kernel: int
) -> None:
    hidden, weight, output = neighbourhoods(images, size, kernel)
    places = images * size[0] * size[1]
    shuffled = torch.randperm(places, generator=torch.Generator().manual_seed(5))
    rows, made = hidden.flatten(0, 2)[shuffled], output.flatten(0, 2)[shuffled]
    order = place_order(rows, made, made > 0, weight, size)
    assert order is not None
    assert order.shape == (images, *size)
    where = {tuple(image.flatten().tolist()) for image in shuffled[order]}
    assert where == {tuple(range(i * size[0] * size[1], (i + 1) * size[0] * size[1])) for i in range(images)}


def test_places_of_which_one_is_missing_make_up_no_images(neighbourhoods: Neighbourhoods) -> None:
    hidden, weight, output = neighbourhoods(2, (2, 2), 3)
    rows, made = hidden.flatten(0, 2)[:7], output.flatten(0, 2)[:7]
    assert place_order(rows, made, made > 0, weight, (2, 2)) is None


def test_open_units_follow_from_the_column_space(relu6_rows: Made) -> None:
    unmasked = _cotangents(12, 150)
    is_open = _cotangents(12, 150, seed=7) > 0.2
    gradient = (unmasked * is_open).T @ _cotangents(12, 40, seed=8)
    found = open_by_columns(gradient.float(), unmasked)
    assert isinstance(found, Tensor)
    assert float((found != is_open).double().mean()) < 0.01


def test_a_gradient_of_fewer_places_has_no_open_units() -> None:
    assert open_by_columns(_cotangents(150, 10), _cotangents(12, 150)) is Why.RANK
    gradient = _cotangents(11, 150).T @ _cotangents(11, 40)
    assert open_by_columns(gradient.float(), _cotangents(12, 150)) is Why.RANK

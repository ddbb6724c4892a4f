"""How often each image is in a batch, by the derivative of the loss."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from gradinversion.peeling.repeats import Repeats, find_repeats, once_each
from torch import Tensor

CLASSES = 7


def _logits(images: int) -> Tensor:
    return torch.randn(images, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _derivative(logits: Tensor, labels: Sequence[Sequence[int]], stated: int, smoothing: float = 0.0) -> Tensor:
    """Of the mean cross-entropy, summed up over the copies of each image."""
    targets = (1 - smoothing) * torch.eye(CLASSES, dtype=logits.dtype) + smoothing / CLASSES
    rows = [
        torch.stack([one.softmax(dim=0) - targets[label] for label in own]).sum(dim=0)
        for one, own in zip(logits, labels, strict=True)
    ]
    return torch.stack(rows) / stated


@pytest.mark.parametrize(
    "labels", [((0, 0), (1,), (2,)), ((0, 3), (1,), (2,)), ((5, 5, 5), (5,)), ((1,), (2, 2), (2, 4))]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("factor", [1.0, 3.7])
def test_copies_and_their_labels_are_found(
    labels: tuple[tuple[int, ...], ...], smoothing: float, factor: float
) -> None:
    stated, logits = sum(map(len, labels)), _logits(len(labels))
    found = find_repeats(factor * _derivative(logits, labels, stated, smoothing), logits, stated, smoothing)
    assert found is not None
    assert found.labels == labels
    assert found.times == tuple(map(len, labels))
    assert (found.sure, found.unseen) == (True, 0)
    assert found.factor == pytest.approx(factor)
    assert found.all_labels is not None
    assert found.all_labels.tolist() == [label for own in labels for label in own]
    assert found.which.tolist() == [image for image, own in enumerate(labels) for _ in own]


def test_an_image_without_a_part_in_the_gradient_is_no_copy_of_another() -> None:
    logits = _logits(3)
    found = find_repeats(_derivative(logits, [[0], [1], [2]], 4), logits, 4)
    assert found is not None
    assert (found.times, found.unseen, found.sure) == ((1, 1, 1), 1, True)


def test_of_an_image_that_the_network_is_sure_of_the_copies_are_not_told() -> None:
    logits = _logits(3)
    logits[0, 0] = 40.0
    found = find_repeats(_derivative(logits, [[0], [1], [2]], 4), logits, 4)
    assert found is not None
    assert (found.times, found.unseen, found.sure) == ((1, 1, 1), 1, False)
    # But where another one accounts for the batch.
    found = find_repeats(_derivative(logits, [[0], [1, 1], [2]], 4), logits, 4)
    assert found is not None
    assert (found.times, found.sure) == ((1, 2, 1), True)


def test_images_that_count_by_factors_of_their_own_are_no_copies() -> None:
    logits = _logits(3)
    clipped = torch.tensor([0.7, 1.0, 0.45], dtype=torch.float64)[:, None]
    assert find_repeats(clipped * _derivative(logits, [[0, 0], [1], [2]], 4), logits, 4) is None


@pytest.mark.parametrize("sure", [0.9995, 0.99998])
def test_copies_of_which_the_derivative_tells_nothing_are_not_counted(sure: float) -> None:
    """One of four images shows nothing: it is no copy of the one that the network is nearly as sure of."""
    logits = torch.tensor(
        [[0.3, 0.3, 0.4], [0.5, 0.2, 0.3], [0.4 * (1 - sure), 0.6 * (1 - sure), sure]], dtype=torch.float64
    ).log()
    derivative = (logits.softmax(dim=1) - torch.eye(3, dtype=torch.float64)) / 4
    found = find_repeats(derivative, logits, 4)
    assert found is not None
    assert (found.times, found.unseen, found.sure) == ((1, 1, 1), 1, False)


def test_an_image_that_is_known_to_be_another_is_no_copy() -> None:
    logits = _logits(3)
    logits[0, 0] = 40.0
    found = find_repeats(_derivative(logits, [[0], [1], [2]], 4), logits, 4, apart=1)
    assert found is not None
    assert (found.times, found.unseen, found.sure) == ((1, 1, 1), 1, True)


@pytest.mark.parametrize("factor", [0.4, 0.47, 0.53])
def test_a_factor_of_all_images_leaves_none_without_a_part(factor: float) -> None:
    """Each is there twice: half the factor and once is the same, but for two images that show nothing."""
    logits = _logits(2)
    found = find_repeats(factor * _derivative(logits, [[0, 0], [1, 1]], 4), logits, 4)
    assert found is not None
    assert (found.times, found.unseen, found.sure) == ((2, 2), 0, False)
    assert found.factor == pytest.approx(factor)


def test_a_factor_that_half_as_many_copies_do_without_is_not_told() -> None:
    logits = _logits(2)
    found = find_repeats(0.5 * _derivative(logits, [[0, 0], [1, 1]], 4), logits, 4)
    assert found is not None
    assert (found.times, found.unseen, found.sure) == ((1, 1), 2, False)


def test_many_ways_to_share_out_copies_are_many() -> None:
    logits = torch.full((32, 10), 1e-5, dtype=torch.float64)
    logits[torch.arange(32), torch.arange(32) % 10] = 1 - 9e-5
    logits = logits.log()
    found = find_repeats(_derivative_of_ten(logits), logits, 48)
    assert found is not None
    assert (found.times, found.sure) == ((1,) * 32, False)


def _derivative_of_ten(logits: Tensor) -> Tensor:
    return (logits.softmax(dim=1) - torch.eye(10, dtype=logits.dtype)[torch.arange(32) % 10]) / 48


def test_where_nothing_tells_the_copies_each_image_is_there_once() -> None:
    found = once_each([3, None], 4)
    assert found == Repeats(4, (1, 1), ((3,), ()), sure=False, counted=False)
    assert found.unseen == 2
    assert found.all_labels is None

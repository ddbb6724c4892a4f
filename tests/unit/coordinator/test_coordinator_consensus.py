"""Parts of the batch, their consensus apart, and the whole put together again."""

from __future__ import annotations

import pytest
import torch
from gradinversion.coordinator import form_consensus, join_parts, match_images, parts_by_label, permute
from gradinversion.registration import Consensus, LeftOut, RegistrationConfig, register
from torch import Tensor

LABELS = torch.tensor([4, 1, 4, 0, 2, 2, 4, 9])
SEEDS = (3, 5, 8)


def pictures(size: int, blobs: int = 4) -> Tensor:
    """Candidates of three seeds: smooth pictures, moved a little, with noise of each seed's own."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    place = 1.4 * torch.rand(len(LABELS), 3, blobs, 2) - 0.7
    found = []
    for shift in (0.0, 0.06, -0.05):
        distance = (x - place[..., 0, None, None] - shift).square() + (y - place[..., 1, None, None]).square()
        found.append((-distance / 0.08).exp().sum(2) + 0.02 * torch.randn(len(LABELS), 3, size, size))
    return torch.stack(found)


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 6, 99])
def test_each_place_is_in_one_part_and_images_of_one_label_stay_together(most: int) -> None:
    parts = parts_by_label(LABELS, most)
    assert sorted(place for part in parts for place in part) == list(range(len(LABELS)))
    assert len(parts) == min(most, len(set(LABELS.tolist())))
    assert all(list(part) == sorted(part) and part for part in parts)
    homes = [{int(LABELS[place]) for place in part} for part in parts]
    for index, one in enumerate(homes):
        assert not any(one & other for other in homes[index + 1 :])


def test_parts_are_of_about_equal_size() -> None:
    assert sorted(map(len, parts_by_label(torch.arange(16), 4))) == [4, 4, 4, 4]
    assert sorted(map(len, parts_by_label(LABELS, 3))) == [2, 3, 3]


@pytest.mark.parametrize("most", [2, 3, 5, 7, 16])
def test_images_with_labels_of_their_own_travel_with_their_neighbours(most: int) -> None:
    parts = parts_by_label(torch.arange(16), most)
    assert sum(parts, ()) == tuple(range(16))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("labels", [[0, 0, 1, 2], [0, 0, 0, 1, 2, 2], [1, 0, 0, 2, 0, 0, 3, 3], [5, 5, 5, 5, 5, 1, 2]])
def test_no_part_is_empty(labels: list[int]) -> None:
    for most in range(1, 8):
        parts = parts_by_label(torch.tensor(labels), most)
        assert len(parts) == min(most, len(set(labels)))
        assert all(parts)
        assert sorted(sum(parts, ())) == list(range(len(labels)))


@pytest.mark.parametrize("labels", [[7], [7, 7, 7]])
def test_a_single_label_is_a_single_part(labels: list[int]) -> None:
    assert parts_by_label(torch.tensor(labels), 8) == [tuple(range(len(labels)))]
    assert parts_by_label(torch.tensor(labels), 0) == [tuple(range(len(labels)))]


def joined(images: Tensor, most: int, config: RegistrationConfig) -> tuple[Consensus, Tensor]:
    found = []
    for part in parts_by_label(LABELS, most):
        consensus, permutations = form_consensus(images[:, list(part)], SEEDS, LABELS[list(part)], 6, config)
        found.append((part, consensus, permutations))
    return join_parts(found, len(LABELS))


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("kind", ["mean", "huber", "wiener", "auto"])
@pytest.mark.parametrize("most", [2, 5])
def test_the_parts_joined_are_the_whole(size: int, kind: str, most: int) -> None:
    images = pictures(size)
    # Each seed has places of its own within a label.
    images[1, [0, 2, 6]], images[2, [4, 5]] = images[1, [6, 0, 2]], images[2, [5, 4]]
    config = RegistrationConfig(consensus=kind)
    whole, permutations = form_consensus(images, SEEDS, LABELS, 6, config)
    found, found_permutations = joined(images, most, config)
    assert torch.equal(found_permutations, permutations)
    assert permutations[1].tolist() != permutations[0].tolist()
    assert (found.seeds, found.round, found.left_out) == (whole.seeds, 6, ())
    assert torch.equal(found.rejected, whole.rejected)
    # Each image is registered alone, but batched operations may sum in another order for another number of images:
    # equal up to rounding, not bit for bit. (A run always has the same parts, so it is equal to itself.)
    torch.testing.assert_close(found.images, whole.images, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.agreement, whole.agreement, rtol=1e-4, atol=1e-4)


def test_some_warp_is_used_there() -> None:
    whole, _ = form_consensus(pictures(32), SEEDS, LABELS, 0, RegistrationConfig())
    assert not bool(whole.rejected.all())


def test_without_registration_the_parts_are_the_whole_bit_for_bit() -> None:
    images, config = pictures(16), RegistrationConfig(method="none")
    whole, _ = form_consensus(images, SEEDS, LABELS, 6, config)
    found, _ = joined(images, 3, config)
    assert torch.equal(found.images, whole.images)


def test_the_same_parts_give_the_same_bits() -> None:
    images, config = pictures(32), RegistrationConfig()
    assert torch.equal(joined(images, 3, config)[0].images, joined(images, 3, config)[0].images)


def test_a_seed_that_is_left_out_of_one_part_counts_in_the_others() -> None:
    images = pictures(16)
    parts = parts_by_label(LABELS, 3)
    images[1, 1] = float("nan")
    found, _ = joined(images, 3, RegistrationConfig(method="none"))
    assert found.seeds == SEEDS
    assert [one.seed for one in found.left_out] == [5]
    assert bool(torch.isfinite(found.images).all())
    there = next(list(part) for part in parts if 1 in part)
    torch.testing.assert_close(found.images[there], images[[0, 2]][:, there].mean(0))


def test_rows_of_refused_warps_follow_the_seeds() -> None:
    def part(seeds: tuple[int, ...], rejected: list[list[bool]], left_out: tuple[LeftOut, ...]) -> Consensus:
        count = len(rejected[0])
        images, agreement = torch.full((count, 1, 8, 8), float(count)), torch.full((count,), 0.5)
        return Consensus(images, agreement, seeds, 2, None, torch.tensor(rejected), left_out)

    permutations = torch.tensor([[0, 1], [1, 0]])
    found, found_permutations = join_parts(
        [
            ((0, 3), part((3, 5), [[True, False], [False, True]], (LeftOut(8, "odd"),)), permutations),
            ((1,), part((5, 8), [[False], [True]], (LeftOut(3, "odd"), LeftOut(8, "odd"))), torch.zeros(2, 1).long()),
            ((2,), part((8,), [[True]], ()), torch.zeros(2, 1).long()),
        ],
        4,
    )
    assert found.seeds == (3, 5, 8)
    assert found.rejected.tolist() == [
        [True, False, False, False],
        [False, False, False, True],
        [False, True, True, False],
    ]
    assert found.images[:, 0, 0, 0].tolist() == [2.0, 1.0, 1.0, 2.0]
    assert found.left_out == (LeftOut(8, "odd"), LeftOut(3, "odd"))
    assert found_permutations.tolist() == [[0, 1, 2, 3], [3, 1, 2, 0]]


def test_the_consensus_is_at_the_places_of_the_first_seed() -> None:
    images = pictures(16)
    images[1, [4, 5]] = images[1, [5, 4]]
    found, permutations = form_consensus(images, SEEDS, LABELS, 1, RegistrationConfig(method="none"))
    assert torch.equal(permutations, match_images(images, LABELS))
    assert permutations[1].tolist() == [0, 1, 2, 3, 5, 4, 6, 7]
    expected = register(permute(images, permutations), config=RegistrationConfig(method="none"))
    assert torch.equal(found.images, expected.images)

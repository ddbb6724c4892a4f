"""The consensus formed in parts, without Ray: how many, by whom, and that it is the same consensus."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from gradinversion.cluster import registering
from gradinversion.cluster.registering import count_parts, form_in_parts, register_part
from gradinversion.cluster.transport import tensor
from gradinversion.coordinator import form_consensus, parts_by_label
from gradinversion.registration import RegistrationConfig
from numpy.typing import NDArray
from torch import Tensor

MIB = 2**20
LABELS = torch.tensor([4, 1, 4, 0, 2, 2])
SEEDS = (3, 5, 8)


@pytest.mark.parametrize(
    ("seeds", "batch_bytes", "expected"),
    [
        (4, 1, 1),
        (8, 8 * MIB, 1),  # 64 MiB pass through the coordinator
        (8, 8 * MIB + 1, 8),  # beyond, one part for each agent
        (2, 40 * MIB, 2),
        (64, 2 * MIB, 16),  # but not for each of many
        (8, 29 * MIB, 8),
        (64, 29 * MIB, 29),  # a part is not much larger than 64 MiB
        (512, 29 * MIB, 232),
        (1, 65 * MIB, 2),
    ],
)
def test_in_how_many_parts(seeds: int, batch_bytes: int, expected: int) -> None:
    assert count_parts(seeds, batch_bytes) == expected


def test_more_seeds_are_never_fewer_parts_and_no_part_is_large() -> None:
    for batch_bytes in (MIB, 29 * MIB, 200 * MIB):
        counts = [count_parts(seeds, batch_bytes) for seeds in range(1, 513)]
        assert counts == sorted(counts)
        assert all(seeds * batch_bytes <= 64 * MIB * count for seeds, count in zip(range(1, 513), counts, strict=True))


@pytest.fixture
def images() -> Tensor:
    """Three seeds that show the same smooth pictures, the second at places of its own within a label."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    place = 1.4 * torch.rand(len(LABELS), 3, 4, 2) - 0.7
    distance = (x - place[..., 0, None, None]).square() + (y - place[..., 1, None, None]).square()
    picture = (-distance / 0.1).exp().sum(2)
    found = torch.stack([picture + 0.05 * torch.randn_like(picture) for _ in SEEDS])
    found[1, [0, 2]] = found[1, [2, 0]]
    return found


class Cluster:
    """References are the things themselves; who was asked for which part is taken down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.processors = 8.0
        monkeypatch.setattr(ray, "get", lambda references: references)
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": self.processors})
        monkeypatch.setattr(registering, "_register_parts_task", SimpleNamespace(remote=self.task))

    def worker(self, name: str) -> Any:
        def register(*arguments: Any) -> Any:
            self.asked.append(name)
            return register_part("cpu", *arguments)

        return SimpleNamespace(register=SimpleNamespace(remote=register))

    def task(self, parts: list[Any]) -> Any:
        self.asked.append(f"task of {len(parts)}")
        return registering._register_parts(parts)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def shared(images: Tensor, parts: list[tuple[int, ...]]) -> list[list[NDArray[Any]]]:
    """As they travel: read-only arrays by seed and part."""
    rows = [[batch[list(part)].numpy() for part in parts] for batch in images]
    for row in rows:
        for array in row:
            array.setflags(write=False)
    return rows


@pytest.mark.parametrize("most", [1, 2, 4])
@pytest.mark.parametrize("config", [RegistrationConfig(), RegistrationConfig(method="none")], ids=["warped", "plain"])
def test_the_parts_are_the_whole(cluster: Cluster, images: Tensor, most: int, config: RegistrationConfig) -> None:
    parts = parts_by_label(LABELS, most)
    whole, permutations = form_consensus(images, SEEDS, LABELS, 6, config)
    found, found_permutations = form_in_parts(parts, shared(images, parts), [], SEEDS, LABELS, 6, config)
    assert permutations[1].tolist() == [2, 1, 0, 3, 4, 5]
    assert torch.equal(found_permutations, permutations)
    assert torch.equal(found.rejected, whole.rejected)
    assert (found.seeds, found.round, found.displacement) == (SEEDS, 6, None)
    # Bit for bit where nothing is warped, or in a single part; else batched operations may round otherwise for another
    # number of images.
    exact = most == 1 or config.method == "none"
    tolerance = 0.0 if exact else 1e-3
    torch.testing.assert_close(found.images, whole.images, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.agreement, whole.agreement, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-4)


@pytest.mark.parametrize(
    ("workers", "asked"),
    [([], ["task of 1"] * 4), (["a"], ["a"] * 4), (["a", "b"], ["a", "b", "a", "b"]), (list("abcdef"), list("abcd"))],
)
def test_parts_are_spread_over_who_has_nothing_else_to_do(
    cluster: Cluster, images: Tensor, workers: list[str], asked: list[str]
) -> None:
    parts = parts_by_label(LABELS, 4)
    config = RegistrationConfig(method="none")
    form_in_parts(parts, shared(images, parts), list(map(cluster.worker, workers)), SEEDS, LABELS, 0, config)
    assert cluster.asked == asked


@pytest.mark.parametrize(
    ("processors", "asked"),
    [(0.5, ["task of 4"]), (1, ["task of 4"]), (2, ["task of 2"] * 2), (3, ["task of 2"] * 2), (64, ["task of 1"] * 4)],
)
def test_no_more_tasks_than_processors(cluster: Cluster, images: Tensor, processors: float, asked: list[str]) -> None:
    cluster.processors = processors
    parts = parts_by_label(LABELS, 4)
    config = RegistrationConfig(method="none")
    found, _ = form_in_parts(parts, shared(images, parts), [], SEEDS, LABELS, 0, config)
    assert cluster.asked == asked
    assert torch.equal(found.images, form_consensus(images, SEEDS, LABELS, 0, config)[0].images)


def test_a_part_travels_without_what_is_large(cluster: Cluster, images: Tensor) -> None:
    part = parts_by_label(LABELS, 4)[0]
    (rows,) = zip(*shared(images, [part]), strict=True)
    array, rest, permutations = register_part("cpu", rows, SEEDS, LABELS[list(part)], 2, RegistrationConfig())
    assert array.shape == (len(part), 3, 16, 16)
    assert (rest.images.numel(), rest.displacement) == (0, None)
    assert permutations.shape == (3, len(part))


def test_images_that_travelled_may_be_written_to() -> None:
    array = np.zeros((2, 2), dtype=np.float32)
    array.setflags(write=False)
    found = tensor(array)
    found += 1
    assert array.sum() == 0

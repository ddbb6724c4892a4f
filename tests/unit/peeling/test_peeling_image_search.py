"""Images whose descent got stuck are looked for again, as long as operations are left."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from gradinversion.peeling import image_search
from gradinversion.peeling.cut import Cut, Recovered
from gradinversion.peeling.image_search import ImageSearch
from torch import Tensor

COUNT, SHAPE = 3, (3, 4, 4)


@dataclass
class FakeDescent:
    """Leaves these misfits of the images that are given, one row for each time that it is asked."""

    misfits: list[list[float]]
    tells: bool = False
    asked: list[tuple[Tensor, int]] = field(default_factory=list)
    cost: int = 10

    def __call__(
        self, cut: object, start: Tensor, low: object, high: object, most: int, told: Any, *_: object
    ) -> Recovered:
        self.asked.append((start, most))
        if self.tells:
            told(self.cost * len(start), start)
        left = torch.tensor(self.misfits[len(self.asked) - 1], dtype=torch.float64)
        images = torch.full((len(start), *SHAPE), float(len(self.asked)), dtype=torch.float64)
        return Recovered(images, left, 0.1 * left, torch.full((len(start),), self.cost))


def search_with(monkeypatch: pytest.MonkeyPatch, descent: FakeDescent, coupled: bool = False) -> tuple[Any, Cut]:
    monkeypatch.setattr(image_search, "images_from_cut", descent)
    monkeypatch.setattr(ImageSearch, "bounds", (None, None))
    place = SimpleNamespace(error=torch.full((COUNT,), 1e-6, dtype=torch.float64))
    cut = SimpleNamespace(places=(place,), is_coupled=coupled, in_order=lambda which: which)
    return ImageSearch(cast(Any, None), cast(Any, None)), cast(Cut, cut)


@pytest.mark.parametrize(("evaluations", "most_again"), [(300, 300 * COUNT - 10 * COUNT), (1000, 1000)])
def test_an_image_that_was_not_met_is_looked_for_again(
    evaluations: int, most_again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    descent = FakeDescent([[1e-5, 0.3, 1e-5], [1e-6]])
    search, cut = search_with(monkeypatch, descent)
    found = search.descend(cut, torch.zeros(COUNT, *SHAPE), evaluations)
    assert found.met.all()
    assert found.begun_again == 1
    assert found.images[:, 0, 0, 0].tolist() == [1, 2, 1]
    assert found.misfit.tolist() == pytest.approx([1e-5, 1e-6, 1e-5])
    assert len(descent.asked) == 2
    again, most = descent.asked[1]
    assert len(again) == 1
    # All that the other images did not need, and no more than an image may have at all.
    assert most == most_again


def test_a_descent_that_begins_again_is_told_as_the_first_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    descent, told = FakeDescent([[0.3, 0.3, 1e-5], [1e-5, 0.2], [1e-6]], tells=True), list[str]()
    search, cut = search_with(monkeypatch, descent)
    found = dataclasses.replace(search, tell=told.append).descend(cut, torch.zeros(COUNT, *SHAPE), 1000)
    assert found.met.all()
    # Two images, of which one began again twice.
    assert found.begun_again == 2
    assert told == [
        "a descent on the features, 30 of at most 3,000 evaluations",
        "a descent that got stuck begins again at 2 of 3 images, blurred",
        "a descent on the features, 20 of at most 2,000 evaluations",
        "a descent that got stuck begins again at 1 of 3 images, blurred",
        "a descent on the features, 10 of at most 1,000 evaluations",
    ]


def test_what_got_no_nearer_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    descent = FakeDescent([[0.3, 0.3, 1e-5], [0.4, 0.2], [0.5, 0.25]])
    search, cut = search_with(monkeypatch, descent)
    found = search.descend(cut, torch.zeros(COUNT, *SHAPE), 1000)
    assert found.met.tolist() == [False, False, True]
    assert found.images[:, 0, 0, 0].tolist() == [1, 2, 1]
    assert found.misfit.tolist() == pytest.approx([0.3, 0.2, 1e-5])


@pytest.mark.parametrize("coupled", [True, False])
def test_nothing_is_looked_for_again_without_operations(monkeypatch: pytest.MonkeyPatch, coupled: bool) -> None:
    descent = FakeDescent([[0.3, 0.3, 0.3]])
    search, cut = search_with(monkeypatch, descent, coupled)
    found = search.descend(cut, torch.zeros(COUNT, *SHAPE), 20)
    assert not found.met.any()
    assert found.begun_again == 0
    assert len(descent.asked) == 1


def test_images_that_descend_as_one_begin_again_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that are stuck are blurred: they spoil the others' features by the statistics."""
    descent = FakeDescent([[0.1, 0.3, 0.1], [0.2, 0.2, 0.2], [1e-5, 1e-5, 1e-5]])
    search, cut = search_with(monkeypatch, descent, coupled=True)
    blurred = list[int]()

    def blur(images: Tensor, times: int) -> Tensor:
        blurred.append(len(images))
        return images + times

    monkeypatch.setattr(image_search, "_blurred", blur)
    found = search.descend(cut, torch.zeros(COUNT, *SHAPE), 1000)
    assert found.met.all()
    assert [len(start) for start, _ in descent.asked] == [COUNT] * 3
    assert blurred == [1, 1]
    # The second descent left more in all than the first, from which the third begins too, blurred more.
    assert descent.asked[1][0][:, 0, 0, 0].tolist() == [1, 2, 1]
    assert descent.asked[2][0][:, 0, 0, 0].tolist() == [1, 5, 1]
    assert found.images[:, 0, 0, 0].tolist() == [3, 3, 3]


def test_what_is_met_and_not_clean_is_looked_for_again_too(monkeypatch: pytest.MonkeyPatch) -> None:
    descent = FakeDescent([[1e-5, 0.016, 1e-5], [1e-5]])
    search, cut = search_with(monkeypatch, descent)
    found = search.descend(cut, torch.zeros(COUNT, *SHAPE), 1000, 0.02)
    assert found.met.all()
    assert found.begun_again == 1
    assert found.misfit.tolist() == pytest.approx([1e-5, 1e-5, 1e-5])


def test_blurring_keeps_what_is_flat_and_takes_away_details() -> None:
    flat = torch.full((1, *SHAPE), 0.7, dtype=torch.float64)
    torch.testing.assert_close(image_search._blurred(flat, 4), flat)
    board = (torch.arange(4)[:, None] + torch.arange(4)).remainder(2).double().expand(1, *SHAPE)
    assert float(image_search._blurred(board, 1)[..., 1:3, 1:3].std()) < 1e-6

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.cut import (
    Cut,
    NoCut,
    Place,
    decode,
    features_off,
    find_cut,
    images_from_cut,
    photo_crops,
    public_photos,
)
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.kinds import Rectifier
from gradinversion.peeling.rules import Derivation, Knowledge, Known
from gradinversion.peeling.units import Units
from torch import Tensor, nn

PIXELS = 16
LOW, HIGH = torch.zeros(1, 3, 1, 1, dtype=torch.float64), torch.ones(1, 3, 1, 1, dtype=torch.float64)


class Skip(nn.Module):
    """Two paths from the stem, of which one passes a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.outer = nn.Conv2d(32, 32, 3, padding=1)
        self.down = nn.Conv2d(16, 32, 1, stride=2)
        self.late = nn.Conv2d(32, 32, 3, padding=1)
        self.fc = nn.Linear(32, 5)

    def forward(self, images: Tensor) -> Tensor:
        stem = F.relu(self.stem(images))
        both = F.relu(self.outer(F.relu(self.inner(stem))) + self.down(stem))
        return self.fc(F.relu(self.late(both)).mean((2, 3)))


@pytest.fixture
def graph() -> Graph:
    found = network_graph(Skip(), (3, PIXELS, PIXELS), BatchNormMode.EVAL, 2)
    assert isinstance(found, Graph)
    return found


def derivation(graph: Graph, images: Tensor, deviation: float = 1e-7, without: int = 1) -> Derivation:
    """All rectifiers known but the first ones."""
    values = {graph.images: images.double()}
    for node in graph.nodes:
        values[node.name] = node.kind.forward([values[name] for name in node.inputs], graph.tensors_of(node))
    knowledge = Knowledge()
    rectifiers = [node.name for node in graph.nodes if isinstance(node.kind, Rectifier)]
    for name in rectifiers[without:]:
        value = values[name].detach()
        spread = torch.full_like(value, deviation)
        knowledge = knowledge.with_activations(name, Known(value, torch.ones_like(value).bool(), spread, "told"))
        sure = torch.zeros_like(value)
        knowledge = knowledge.with_units(name, Units(value > 0, sure, sure.bool()))
    return Derivation(graph, knowledge)


def photos(count: int, seed: int = 5) -> Tensor:
    return photo_crops(list(public_photos().values()), (PIXELS, PIXELS), count, seed)


def test_the_cut_is_where_every_path_from_the_images_ends(graph: Graph) -> None:
    rectifiers = [node.name for node in graph.nodes if isinstance(node.kind, Rectifier)]
    assert len(rectifiers) == 4
    cut = find_cut(derivation(graph, photos(2)))
    assert isinstance(cut, Cut)
    # The inner one is on one path, and the sum is reached by the skip; the last one is behind the sum.
    assert [place.rectifier for place in cut.places] == rectifiers[1:3]
    whole = find_cut(derivation(graph, photos(2), without=0))
    assert isinstance(whole, Cut)
    assert [place.rectifier for place in whole.places] == rectifiers[:1]


def test_a_cut_runs_the_model_up_to_its_places(graph: Graph) -> None:
    images = photos(2)
    cut = find_cut(derivation(graph, images))
    assert isinstance(cut, Cut)
    for place, value in zip(cut.places, cut.forward(torch.float64, torch.device("cpu"))(images.double()), strict=True):
        torch.testing.assert_close(value.clamp_min(0), place.values)


def test_without_features_there_is_no_cut(graph: Graph) -> None:
    found = find_cut(Derivation(graph, Knowledge()))
    assert isinstance(found, NoCut)
    assert "known for every image" in found.why


def test_what_cannot_be_computed_in_front_is_named() -> None:
    model = Skip()
    model.stem = nn.Sequential(model.stem, nn.SiLU())  # type: ignore[assignment]
    graph = network_graph(model, (3, PIXELS, PIXELS), BatchNormMode.EVAL, 2)
    assert isinstance(graph, Graph)
    known = Knowledge()
    name = [node.name for node in graph.nodes if isinstance(node.kind, Rectifier)][1]
    value = torch.ones(2, *graph.shape(name), dtype=torch.float64)
    known = known.with_activations(name, Known(value, value.bool(), 1e-6 * value, "told"))
    known = known.with_units(name, Units(value.bool(), 0 * value, (0 * value).bool()))
    found = find_cut(Derivation(graph, known))
    assert isinstance(found, NoCut)
    assert "silu" in found.why


def test_photos_are_crops_of_public_ones() -> None:
    pictures = public_photos(without=("astronaut",))
    assert list(pictures) == ["chelsea", "coffee", "rocket", "motorcycle"]
    crops = photo_crops(list(pictures.values()), (12, 20), 7)
    assert crops.shape == (7, 3, 12, 20)
    assert 0 <= float(crops.min()) < float(crops.max()) <= 1
    assert torch.equal(crops, photo_crops(list(pictures.values()), (12, 20), 7))
    assert not torch.equal(crops, photo_crops(list(pictures.values()), (12, 20), 7, seed=1))


def test_the_decoder_starts_nearer_than_a_flat_image(graph: Graph) -> None:
    images = photos(3)
    cut = find_cut(derivation(graph, images))
    assert isinstance(cut, Cut)
    decoded = decode(cut, photos(60, seed=0))
    start = decoded.images
    flat = images.mean(dim=(2, 3), keepdim=True)
    off, constant = ((one - images).square().mean(dim=(1, 2, 3)) for one in (start, flat))
    assert bool((off < 0.7 * constant).all())
    # As large as the error on other crops, up to what they are unlike.
    assert 0.3 * float(off.mean().sqrt()) < decoded.error < 1.5 * float(off.mean().sqrt())


def test_the_descent_from_the_decoded_start_is_exact_and_says_so(graph: Graph) -> None:
    images = photos(2)
    cut = find_cut(derivation(graph, images))
    assert isinstance(cut, Cut)
    found = images_from_cut(cut, decode(cut, photos(60, seed=0)).images, LOW, HIGH)
    off = (found.images - images).flatten(1).square().mean(dim=1).sqrt()
    assert float(off.max()) < 1e-4
    assert bool((found.error > off / 10).all())
    assert float(found.misfit.max()) < 1e-4
    assert torch.equal((255 * found.images).round(), (255 * images.double()).round())


def test_errors_of_the_features_are_felt_in_the_images(graph: Graph) -> None:
    images = photos(2)
    exact = find_cut(derivation(graph, images))
    assert isinstance(exact, Cut)
    random = torch.Generator().manual_seed(0)
    places = []
    for place in exact.places:
        spread = 0.01 * place.values.square().mean().sqrt() * torch.ones_like(place.values)
        noise = spread * torch.randn(place.values.shape, generator=random, dtype=torch.float64)
        values = torch.where(place.is_open, place.values + noise, 0.0)
        places.append(Place(place.rectifier, place.before, values, place.is_open, spread, place.error + 0.01))
    cut = Cut(exact.graph, tuple(places))
    found = images_from_cut(cut, decode(cut, photos(60, seed=0)).images, LOW, HIGH)
    off = (found.images - images).flatten(1).square().mean(dim=1).sqrt()
    assert bool((off > 1e-4).all())
    assert bool((found.error > off / 10).all())
    assert bool((found.error < off * 10).all())


def test_a_grid_that_does_not_divide_the_image_is_decoded_pixel_by_pixel() -> None:
    graph = network_graph(Skip(), (3, 15, 15), BatchNormMode.EVAL, 2)
    assert isinstance(graph, Graph)
    images = photo_crops(list(public_photos().values()), (15, 15), 2, 5)
    cut = find_cut(derivation(graph, images))
    assert isinstance(cut, Cut)
    start = decode(cut, photo_crops(list(public_photos().values()), (15, 15), 60, 0))
    assert start.images.shape == images.shape


def test_each_evaluation_is_told(graph: Graph) -> None:
    images = photos(2)
    cut = find_cut(derivation(graph, images))
    assert isinstance(cut, Cut)
    told: list[int] = []
    start = torch.full_like(images, 0.5).double()
    found = images_from_cut(cut, start, LOW, HIGH, 30, on_evaluation=lambda made, best: told.append(made))
    assert told == sorted(told)
    # A quarter is left to the second descent.
    assert 0 < told[-1] <= 2 * 23
    assert int(found.evaluations.sum()) <= 2 * 30


def test_an_easy_image_does_not_wait_for_a_hard_one(graph: Graph) -> None:
    images = photos(2)
    cut = find_cut(derivation(graph, images))
    assert isinstance(cut, Cut)
    start = decode(cut, photos(60, seed=0)).images
    start[1] = 0.5
    together = images_from_cut(cut, start, LOW, HIGH)
    alone = find_cut(derivation(graph, images[:1]))
    assert isinstance(alone, Cut)
    off = (together.images - images).flatten(1).square().mean(dim=1).sqrt()
    assert float(off[0]) < 1e-4
    by_itself = images_from_cut(alone, start[:1], LOW, HIGH)
    # Equal but for what rounding of other batches makes of it.
    assert float((by_itself.images[0] - together.images[0]).abs().max()) < 1e-3


def test_a_place_that_is_barely_known_does_not_spoil_one_that_is_exact(graph: Graph) -> None:
    images = photos(2)
    exact = find_cut(derivation(graph, images))
    assert isinstance(exact, Cut)
    random = torch.Generator().manual_seed(0)
    inner, both = exact.places
    size = inner.values.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    off = 0.02 * size * torch.randn(inner.values.shape, generator=random, dtype=torch.float64)
    rough = Place(
        inner.rectifier,
        inner.before,
        inner.values + off,
        inner.is_open,
        (0.02 * size).expand_as(inner.values),
        torch.full((2,), 0.02).double(),
    )
    start = decode(exact, photos(60, seed=0)).images
    mixed = images_from_cut(Cut(graph, (rough, both)), start, LOW, HIGH, 1000)
    alike = Cut(graph, (replace(rough, error=both.error), both))
    spoiled = images_from_cut(alike, start, LOW, HIGH, 1000)
    left, more = ((one.images - images).square().mean().sqrt() for one in (mixed, spoiled))
    assert float(left) < 0.3 * float(more)


def test_a_unit_is_surely_open_where_no_error_explains_its_output(graph: Graph) -> None:
    images = photos(2)
    exact, rough = (find_cut(derivation(graph, images, deviation)) for deviation in (1e-7, 0.02))
    assert isinstance(exact, Cut)
    assert isinstance(rough, Cut)
    for one, other in zip(exact.places, rough.places, strict=True):
        assert torch.equal(one.is_open, one.values > 5e-7)
        assert torch.equal(other.is_open, other.values > 0.1)


def test_units_that_are_believed_open_by_mistake_do_not_hold_the_descent(graph: Graph) -> None:
    images = photos(2)
    found = derivation(graph, images)
    name = "relu_2"
    known = found.knowledge.activations[name]
    shut = (known.values == 0).nonzero()[::200]
    assert len(shut) > 3
    values = known.values.clone()
    is_open = found.knowledge.units[name].is_open.clone()
    values[tuple(shut.T)], is_open[tuple(shut.T)] = 1e-6, True
    mistaken = found.knowledge.with_activations(name, replace(known, values=values, deviation=known.deviation * 10))
    mistaken = mistaken.with_units(name, replace(found.knowledge.units[name], is_open=is_open))
    cut = find_cut(Derivation(graph, mistaken))
    assert isinstance(cut, Cut)
    assert name in [place.rectifier for place in cut.places]
    recovered = images_from_cut(cut, decode(cut, photos(60, seed=0)).images, LOW, HIGH)
    assert float((recovered.images - images).square().mean().sqrt()) < 1e-4


def test_what_is_off_at_a_unit_that_may_be_shut_is_what_is_above_zero() -> None:
    found = torch.tensor([-1.0, 2.0, -1.0, 2.0, 7.0, 5.0])
    target = torch.tensor([0.5, 0.5, 0.5, 0.0, 6.0, 6.0])
    is_open = torch.tensor([True, True, False, False, False, False])
    expected = torch.tensor([-1.5, 1.5, -0.5, 2.0, 0.0, -1.0])
    torch.testing.assert_close(features_off(found, target, is_open, target == 6), expected)

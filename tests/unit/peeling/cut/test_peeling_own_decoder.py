"""A decoder of the user's own on features at a cut."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.config import PeelingConfig
from gradinversion.peeling.cut import Cut, decode_with, find_cut, photo_crops, public_photos
from gradinversion.peeling.decoded_start import decoded_start
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.image_search import ImageSearch
from gradinversion.peeling.kinds import Rectifier
from gradinversion.peeling.rules import Derivation, Knowledge, Known
from gradinversion.peeling.units import Units
from gradinversion.plugins import PluginError
from torch import Tensor, nn

PIXELS = 16
EXAMPLE = Path(__file__).resolve().parents[4] / "docs" / "examples" / "own_parts"


@pytest.fixture
def images() -> Tensor:
    return photo_crops(list(public_photos().values()), (PIXELS, PIXELS), 3, 5)


@pytest.fixture
def cut(images: Tensor) -> Cut:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 8, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )
    graph = network_graph(model, (3, PIXELS, PIXELS), BatchNormMode.EVAL, 2)
    assert isinstance(graph, Graph)
    name = next(node.name for node in graph.nodes if isinstance(node.kind, Rectifier))
    value = model[1](model[0](images)).detach().double()
    sure = torch.zeros_like(value)
    known = Knowledge().with_activations(name, Known(value, torch.ones_like(value).bool(), sure + 1e-7, "told"))
    found = find_cut(Derivation(graph, known.with_units(name, Units(value > 0, sure, sure.bool()))))
    assert isinstance(found, Cut)
    return found


def put_decoder(monkeypatch: pytest.MonkeyPatch, build: Callable[..., object]) -> str:
    module = ModuleType("wrong_parts")
    vars(module)["build"] = build
    monkeypatch.setitem(sys.modules, "wrong_parts", module)
    return "wrong_parts:build"


def test_the_example_starts_nearer_than_a_flat_image_and_its_error_is_measured(
    cut: Cut, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXAMPLE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    crops = photo_crops(list(public_photos().values()), (PIXELS, PIXELS), 60, 0)
    before = torch.get_rng_state()
    decoded = decode_with("own_parts:small_network", cut, crops)
    assert torch.equal(torch.get_rng_state(), before)
    again = decode_with("own_parts:small_network", cut, crops)
    assert torch.equal(again.images, decoded.images)
    flat = images.mean(dim=(2, 3), keepdim=True)
    off, constant = ((one - images).square().mean() for one in (decoded.images, flat))
    assert off < 0.5 * constant
    assert 0.3 * float(off.sqrt()) < decoded.error < 3 * float(off.sqrt())
    sys.modules.pop("own_parts", None)


def test_a_decoder_never_sees_what_its_error_is_measured_on(cut: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = photo_crops(list(public_photos().values()), (PIXELS, PIXELS), 100, 0)
    seen: list[Tensor] = []

    def build(photos: Tensor, features_of: Callable[[Tensor], list[Tensor]]) -> Callable[[list[Tensor]], Tensor]:
        seen.append(photos)
        assert [len(one) for one in features_of(photos[:20])] == [20]
        return lambda features: torch.full((len(features[0]), 3, PIXELS, PIXELS), 0.5)

    decoded = decode_with(put_decoder(monkeypatch, build), cut, crops)
    held = [crop for crop in crops if not any(torch.equal(crop, other) for other in seen[0])]
    assert len(held) + len(seen[0]) == len(crops)
    assert len(held) >= 16
    assert decoded.error == pytest.approx(float((torch.stack(held) - 0.5).square().mean().sqrt()), rel=1e-5)


def test_few_photos_are_held_out_too_and_one_piece_is_not_enough(cut: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def build(photos: Tensor, features_of: Callable[[Tensor], list[Tensor]]) -> Callable[[list[Tensor]], Tensor]:
        seen.append(len(photos))
        return lambda features: torch.zeros(len(features[0]), 3, PIXELS, PIXELS)

    name = put_decoder(monkeypatch, build)
    decode_with(name, cut, photo_crops(list(public_photos().values()), (PIXELS, PIXELS), 40, 0))
    assert seen == [32]  # in pieces of sixteen the last one is held out
    with pytest.raises(PluginError, match=r"has 12 public photos for 3 images in one batch; it needs twice as many"):
        decode_with(name, cut, photo_crops(list(public_photos().values()), (PIXELS, PIXELS), 12, 0))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda photos, features_of: photos, "returned a Tensor; it must return a function"),
        (lambda photos, features_of: lambda features: features[0], "makes shape .* it must make images of shape"),
        (
            lambda photos, features_of: lambda features: torch.full((len(features[0]), 3, PIXELS, PIXELS), torch.nan),
            "images that are not finite",
        ),
        (lambda photos: None, "failed with TypeError"),
    ],
)
def test_decoders_that_break_their_protocol(
    cut: Cut, monkeypatch: pytest.MonkeyPatch, build: Callable[..., object], message: str
) -> None:
    crops = photo_crops(list(public_photos().values()), (PIXELS, PIXELS), 40, 0)
    with pytest.raises(PluginError, match=message):
        decode_with(put_decoder(monkeypatch, build), cut, crops)


def test_the_setting_decides_which_decoder_is_asked(cut: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradinversion.capture import ClientConfig, simulate_client

    update, _, _ = simulate_client(ClientConfig(image_size=PIXELS, batch_size=3), seed=0)
    asked: list[int] = []

    def build(photos: Tensor, features_of: Callable[[Tensor], list[Tensor]]) -> Callable[[list[Tensor]], Tensor]:
        asked.append(len(photos))
        return lambda features: torch.zeros(len(features[0]), 3, PIXELS, PIXELS)

    pictures = list(public_photos().values())
    name = put_decoder(monkeypatch, build)
    found, _ = decoded_start(ImageSearch(update, PeelingConfig(decoder=name, operations=1e9), pictures), cut)
    assert found is not None
    assert not bool(found.images.any())
    usual, _ = decoded_start(ImageSearch(update, PeelingConfig(operations=1e9), pictures), cut)
    assert usual is not None
    assert bool(usual.images.any())
    assert len(asked) == 1

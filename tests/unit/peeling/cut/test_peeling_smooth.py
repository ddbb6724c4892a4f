from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.cut import (
    Cut,
    Descents,
    Place,
    decode,
    descents,
    fit_decoder,
    is_open_question,
    photo_crops,
    public_photos,
    refine,
    smooth_images,
    widest_contrast,
)
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.kinds import Rectifier
from torch import Tensor, nn

PIXELS = 32
LOW, HIGH = torch.zeros(3, 1, 1, dtype=torch.float64), torch.ones(3, 1, 1, dtype=torch.float64)


def planned(cut: Cut, steps: int, most: int = 1) -> Descents:
    return replace(descents(cut), steps=steps, most=most)


def photos(count: int, seed: int) -> Tensor:
    """Of four photos; the private ones below are of another."""
    return photo_crops(list(public_photos(without=("motorcycle",)).values()), (PIXELS, PIXELS), count, seed)


@pytest.fixture(scope="module")
def private() -> Tensor:
    pictures = [public_photos(without=("astronaut", "chelsea", "coffee", "rocket"))["motorcycle"]]
    return photo_crops(pictures, (PIXELS, PIXELS), 2, seed=3)


@pytest.fixture(scope="module")
def cut(private: Tensor) -> Cut:
    """384 features of 3,072 pixels."""
    return cut_of(private, 8)


def cut_of(images: Tensor, stride: int) -> Cut:
    """Behind one convolution and a ReLU6."""
    torch.manual_seed(0)
    side = images.shape[-1]
    model = nn.Sequential(
        nn.Conv2d(3, 24, stride, stride), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)
    )
    graph = network_graph(model, (3, side, side), BatchNormMode.EVAL, len(images))
    assert isinstance(graph, Graph)
    rectifier = next(node for node in graph.nodes if isinstance(node.kind, Rectifier))
    first = graph.by_name[rectifier.inputs[0]]
    entering = first.kind.forward([given(images.double())], graph.tensors_of(first)).detach()
    spread, error = torch.full_like(entering, 1e-7), torch.full((len(images),), 1e-7, dtype=torch.float64)
    is_open = (entering > 0) & (entering < 6)
    return Cut(graph, (Place(rectifier.name, first.name, entering.clamp(0, 6), is_open, spread, error, 6.0),))


def given(images: Tensor) -> Tensor:
    """As the model is given them: contrasts as large as those of normalised photos, and more."""
    return 8 * images - 4


def off(images: Tensor, private: Tensor) -> Tensor:
    return ((images + 4) / 8 - private).square().mean(dim=(1, 2, 3)).sqrt()


def test_a_square_of_places_leaves_less_than_one_place(cut: Cut) -> None:
    crops = given(photos(200, 0))
    alone, error = fit_decoder(cut, crops)
    around, less = fit_decoder(cut, crops, reach=3)
    assert around.weights.shape[0] == 9 * 24 + 1
    assert alone.weights.shape[0] == 24 + 1
    assert less < error
    values = [place.values for place in cut.places]
    torch.testing.assert_close(alone.images(values), decode(cut, crops).images)


def test_what_features_do_not_tell_is_left_at_the_photos_mean(cut: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that say nothing of an image: crops of other photos show that, and other crops of the same may not."""
    (place,) = cut.places
    random = torch.Generator().manual_seed(0)
    blind = replace(place, values=6 * torch.rand(place.values.shape, generator=random, dtype=torch.float64))
    crops, run = given(photos(40, 0)), cut.forward(torch.float32, torch.device("cpu"))

    def noise(images: Tensor) -> list[Tensor]:
        return [6 * torch.rand(value.shape, generator=random) for value in run(images)]

    monkeypatch.setattr(Cut, "features", lambda *_: noise)
    decoder, error = fit_decoder(Cut(cut.graph, (blind,)), crops, reach=3, pictures=4)
    spread = float((crops - crops.mean()).square().mean().sqrt())
    assert error < 1.1 * spread
    flat = decoder.images([blind.values])
    assert float(flat.std()) < 0.35 * spread
    # No weights come nearer to other photos than the mean block does, and that is what is made of all features.
    assert decoder.explained == 0
    torch.testing.assert_close(flat[0], flat[1])
    torch.testing.assert_close(flat.mean().float(), crops.mean(), atol=1e-2, rtol=0)


def test_what_a_decoder_explains_of_other_photos_is_what_it_leaves_of_their_variance(cut: Cut) -> None:
    crops = given(photos(100, 0))
    decoder, error = fit_decoder(cut, crops, reach=3, pictures=4)
    spread = (crops - crops.mean(0)).square().mean()
    assert 0.3 < decoder.explained < 1
    torch.testing.assert_close(1 - decoder.explained, float(error**2 / spread), atol=0.1, rtol=0.3)


def test_the_error_of_a_decoder_is_that_on_photos_it_was_not_fitted_on(cut: Cut) -> None:
    crops = given(photos(200, 0))
    _, seen = fit_decoder(cut, crops, reach=3)
    _, unseen = fit_decoder(cut, crops, reach=3, pictures=4)
    assert unseen > seen
    decoder, _ = fit_decoder(cut, crops, reach=3, pictures=4)
    pictures = [public_photos(without=("astronaut", "chelsea", "coffee", "rocket"))["motorcycle"]]
    others = given(photo_crops(pictures, (PIXELS, PIXELS), 30, seed=5))
    with torch.no_grad():
        left = decoder.images(cut.features(torch.float32, torch.device("cpu"))(others)) - others
    assert 1 / 3 < unseen / float(left.square().mean().sqrt()) < 3


def test_a_held_back_unit_counts_as_its_ceiling_in_photos_too(cut: Cut) -> None:
    images = 2 * given(photos(4, 1))
    (before,) = cut.forward(torch.float32, torch.device("cpu"))(images)
    (features,) = cut.features(torch.float32, torch.device("cpu"))(images)
    assert float(before.max()) > 6
    assert torch.equal(features, before.clamp(0, 6))


def test_smooth_images_have_the_features_and_are_nearer(cut: Cut, private: Tensor) -> None:
    start = decode(cut, given(photos(100, 0))).images
    seen: list[int] = []
    images, misfit, is_hidden = smooth_images(cut, start, given(LOW), given(HIGH), planned(cut, 200), seen.append)
    assert not is_hidden
    assert bool((off(images, private) < off(start, private)).all())
    assert float(off(images, private).mean()) < 0.9 * float(off(start, private).mean())
    assert float(misfit.max()) < 0.3
    assert seen == list(range(1, 201))
    assert bool((images >= -4 - 1e-5).all() & (images <= 4 + 1e-5).all())
    # What it says of the features is so.
    (reached,) = cut.forward(torch.float64, torch.device("cpu"))(images)
    (place,) = cut.places
    left = (reached.clamp(0, 6) - place.values).flatten(1).norm(dim=1) / place.values.flatten(1).norm(dim=1)
    assert bool((left <= 1.01 * misfit + 1e-6).all())


def test_several_descents_go_on_one_after_another_and_give_the_mean_of_the_later_ones(
    cut: Cut, private: Tensor
) -> None:
    begun = decode(cut, given(photos(100, 0))).images
    seen: list[int] = []
    mean, misfit, _ = smooth_images(cut, begun, given(LOW), given(HIGH), planned(cut, 40, 3), seen.append)
    assert seen == list(range(1, 121))
    ends = [begun]
    for _ in range(3):
        ends.append(smooth_images(cut, ends[-1], given(LOW), given(HIGH), planned(cut, 40))[0])
    torch.testing.assert_close(mean, (ends[2] + ends[3]) / 2, atol=1e-3, rtol=1e-3)
    assert float(off(mean, private).mean()) < float(off(ends[1], private).mean())
    (reached,) = cut.features(torch.float64, torch.device("cpu"))(mean)
    target = cut.places[0].values
    left = (reached - target).flatten(1).norm(dim=1) / target.flatten(1).norm(dim=1)
    torch.testing.assert_close(left, misfit, atol=2e-2, rtol=0.1)


@pytest.mark.parametrize(("side", "most"), [(128, 5), (136, 1)])
def test_large_images_descend_once_and_at_a_small_rate(side: int, most: int) -> None:
    found = descents(cut_of(torch.rand(1, 3, side, side, dtype=torch.float64), 8))
    assert found.most == most
    assert (found.rate < 0.05) is (most == 1)


def test_an_image_does_not_depend_on_the_others(cut: Cut) -> None:
    start = decode(cut, given(photos(100, 0))).images
    both, *_ = smooth_images(cut, start, given(LOW), given(HIGH), planned(cut, 20))
    alone, *_ = smooth_images(cut.in_order(torch.tensor([1])), start[1:], given(LOW), given(HIGH), planned(cut, 20))
    torch.testing.assert_close(both[1:], alone, atol=1e-2, rtol=0)


def test_the_network_mends_what_the_decoder_leaves(cut: Cut, private: Tensor) -> None:
    crops = given(photos(300, 0))
    decoder, _ = fit_decoder(cut, crops, reach=3)
    linear = decoder.images([place.values for place in cut.places])
    before = torch.random.get_rng_state()
    mended = refine(cut, decoder, crops, steps=60)
    assert torch.equal(before, torch.random.get_rng_state())
    assert float(off(mended, private).mean()) < float(off(linear, private).mean())
    # Untrained it adds nothing.
    torch.testing.assert_close(refine(cut, decoder, crops, steps=0), linear, atol=1e-4, rtol=1e-4)


def test_the_network_is_left_out_where_blocks_are_no_power_of_two(private: Tensor) -> None:
    odd = cut_of(private[..., :30, :30], 6)
    crops = given(photos(20, 0))[..., :30, :30]
    decoder, _ = fit_decoder(odd, crops)
    assert decoder.block == (6, 6)
    torch.testing.assert_close(refine(odd, decoder, crops, steps=1), decode(odd, crops).images, atol=1e-4, rtol=1e-4)


def test_features_that_are_as_many_as_the_pixels_are_no_open_question(cut: Cut) -> None:
    assert is_open_question(cut)
    (place,) = cut.places
    many = torch.ones(2, 192, 4, 4, dtype=torch.float64)
    some, all_but_one = many.bool(), many.bool()
    some[0, :100] = False  # of one image alone
    all_but_one[:, 0, 0, 0] = False
    for is_open, expected in ((many.bool(), False), (some, False), (all_but_one, True)):
        told = replace(place, values=many, is_open=is_open, deviation=many)
        assert is_open_question(Cut(cut.graph, (told,))) is expected


@pytest.mark.parametrize("contrast", [0.5, 1.0])
def test_contrast_that_batch_norm_hides_is_as_wide_as_pixels_allow(private: Tensor, contrast: float) -> None:
    torch.manual_seed(0)
    first, norm = nn.Conv2d(3, 24, 8, 8, bias=False), nn.BatchNorm2d(24)
    model = nn.Sequential(first, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4))
    graph = network_graph(model, (3, PIXELS, PIXELS), BatchNormMode.TRAIN_PRIVATE, len(private))
    assert isinstance(graph, Graph)
    rectifier = next(node for node in graph.nodes if isinstance(node.kind, Rectifier))
    with torch.no_grad():
        entering = norm.train()(first(given(private).float())).double()
    spread, error = torch.full_like(entering, 1e-7), torch.full((len(private),), 1e-7, dtype=torch.float64)
    place = Place(rectifier.name, rectifier.inputs[0], entering.clamp_min(0), entering > 0, spread, error)
    noise = torch.randn(private.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = contrast * (0.6 * given(private).double() + 0.3 * noise).clamp(-4, 4)
    low, high = 8 * LOW - 4, 8 * HIGH - 4
    hiding = Cut(graph, (place,))
    images, misfit, is_hidden = smooth_images(hiding, start, low, high, planned(hiding, 100))
    assert is_hidden
    assert float(misfit.max()) < 0.2
    assert widest_contrast(images, low, high, 0.02) == pytest.approx(1, abs=0.1)

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import CapturedUpdate, capture_gradient
from gradinversion.peeling import PeelingConfig, decoded_start, fewer_images, recovery
from gradinversion.peeling.cut import Cut, descents, photo_crops, public_photos, smooth_images
from gradinversion.peeling.image_search import Descended, ImageSearch
from gradinversion.peeling.record import Contrast
from gradinversion.peeling.recovered import Recovery
from gradinversion.peeling.recovery import recover_images
from gradinversion.peeling.rules import Derivation, derive
from gradinversion.peeling.shared_contrast import WIDEST
from torch import Tensor, nn

PIXELS = 16


class Residual(nn.Module):
    """A stem that is too large for linear equations alone, and two stages behind it that are not."""

    def __init__(self, first: int = 32, pooled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(first)
        self.pool = nn.MaxPool2d(3, 1, padding=1) if pooled else nn.Identity()
        self.halved = nn.Conv2d(first, 64, 3, stride=2, padding=1)
        self.quartered = nn.Conv2d(64, 96, 3, stride=2, padding=1)
        self.conv1 = nn.Conv2d(96, 256, 3, padding=1)
        self.conv2 = nn.Conv2d(256, 256, 3, padding=1)
        self.down = nn.Conv2d(96, 256, 1)
        self.fc = nn.Linear(256, 10)

    def forward(self, images: Tensor) -> Tensor:
        stem = F.relu(self.halved(self.pool(F.relu(self.norm(self.stem(images))))))
        value = F.relu(self.quartered(stem))
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(value))) + self.down(value)).mean((2, 3)))


def update_of(model: nn.Module, count: int = 4, **told: object) -> tuple[CapturedUpdate, Tensor, Tensor]:
    pictures = list(public_photos(without=("chelsea", "coffee")).values())
    images = (255 * photo_crops(pictures, (PIXELS, PIXELS), count, 9)).round() / 255
    labels = torch.tensor([7, 2, 9, 4][:count])
    return capture_gradient(model, images, labels, **told), images, labels  # type: ignore[arg-type]


def test_images_and_their_labels_are_recovered_to_the_bit() -> None:
    model = Residual().eval()
    update, images, labels = update_of(model)
    found = recover_images(update, model, pictures=list(public_photos(without=("astronaut", "rocket")).values()))
    assert found.images is not None
    assert found.error is not None
    assert found.labels is not None
    assert found.module == "stem"
    order = torch.stack([(found.labels == label).nonzero()[0, 0] for label in labels])
    pixels = update.normalisation.invert(found.images)[order]
    assert torch.equal((255 * pixels).round(), (255 * images.double()).round())
    normalised = update.normalisation.apply(images.double())
    off = (found.images[order] - normalised).flatten(1).norm(dim=1) / normalised.flatten(1).norm(dim=1)
    assert bool((found.error[order] > off / 10).all())
    assert found.message.startswith("By the taps of conv2 the gradient determines 4 places")
    assert found.record is not None
    assert found.record.found is not None
    assert len(found.record.found.errors) == 4


def test_the_record_names_the_photos_that_were_decoded_with() -> None:
    model = Residual().eval()
    update, _, _ = update_of(model)
    found = recover_images(update, model, PeelingConfig(photos_without=("astronaut", "rocket")))
    assert found.record is not None
    assert found.record.photos is not None
    assert found.record.photos.names == ("chelsea", "coffee", "motorcycle", "camera")
    assert found.record.photos.left_out == ("astronaut", "rocket")
    nowhere = recover_images(update, model, PeelingConfig(photos="nowhere"))
    assert (nowhere.images, nowhere.start) == (None, None)
    assert nowhere.cut is not None
    assert "does not exist" in nowhere.message


def test_it_tells_what_it_is_at() -> None:
    model = Residual().eval()
    told: list[str] = []
    recover_images(update_of(model)[0], model, tell=told.append)
    assert told[0] == "the network as a graph"
    assert told[1].startswith("one place known, the input of conv2 (256 x 4 x 4, estimated error ")
    assert told[4].startswith("4 places known, last the input of quartered (64 x 8 x 8, estimated error ")
    assert told[5] == "a decoder from the features to pixels"
    assert told[6] == "a descent on the features, 4 of at most 4,000 evaluations"
    assert len(told) < 18


@pytest.mark.parametrize("mode", ["train_private", "train_shared"])
def test_images_behind_batch_statistics_are_recovered_to_the_bit(mode: str) -> None:
    model = Residual().eval()
    update, images, labels = update_of(model, batch_norm=mode)
    found = recover_images(update, model, pictures=list(public_photos(without=("astronaut", "rocket")).values()))
    assert found.images is not None
    assert found.error is not None
    assert found.labels is not None
    order = torch.stack([(found.labels == label).nonzero()[0, 0] for label in labels])
    pixels = update.normalisation.invert(found.images)[order]
    assert torch.equal((255 * pixels).round(), (255 * images.double()).round())
    normalised = update.normalisation.apply(images.double())
    off = (found.images[order] - normalised).flatten(1).norm(dim=1) / normalised.flatten(1).norm(dim=1)
    assert bool((found.error[order] > off / 10).all())
    # Statistics that were sent leave no contrast hidden.
    assert ("hides the contrast" in found.message) == (mode == "train_private")


def test_a_contrast_that_nothing_tells_is_said_to_be_unknown() -> None:
    model = Residual().eval()
    _, images, labels = update_of(model)
    generator = torch.Generator().manual_seed(5)
    images = (images + (torch.rand(images.shape, generator=generator) - 0.5) / 255).clamp(0.002, 0.998)
    update = capture_gradient(model, images, labels, batch_norm="train_private")
    found = recover_images(update, model, pictures=list(public_photos(without=("astronaut", "rocket")).values()))
    assert found.images is not None
    assert found.error is not None
    assert "no 8-bit values tell it" in found.message
    assert float(found.error.min()) >= 0.5
    assert found.labels is not None
    order = torch.stack([(found.labels == label).nonzero()[0, 0] for label in labels])
    truth = update.normalisation.apply(images.double())
    shape = found.images[order]
    factor = (shape * truth).sum() / shape.square().sum()
    assert float((factor * shape - truth).norm() / truth.norm()) < 1e-3
    assert 0.5 < float(factor) < 2


def test_a_network_without_a_foothold_is_a_sentence() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    update, _, _ = update_of(model)
    found = recover_images(update, model)
    assert (found.images, found.steps) == (None, ())
    assert "no foothold" in found.message


def test_a_model_that_is_no_graph_is_a_sentence() -> None:
    class Decides(Residual):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images if float(images.sum()) > 0 else -images)

    model = Decides().eval()
    update, _, _ = update_of(model)
    found = recover_images(update, model)
    assert found.images is None
    assert "cannot be written as a graph" in found.message


@pytest.mark.parametrize("name", ["stem.weight", "norm.bias"])
def test_missing_gradients_in_front_of_the_cut_do_no_harm(name: str) -> None:
    model = Residual().eval()
    update, _, _ = update_of(model)
    gradients = {key: value for key, value in update.gradients.items() if key != name}
    found = recover_images(dataclasses.replace(update, gradients=gradients), model)
    assert found.images is not None
    assert found.error is not None
    assert float(found.error.max()) < 1e-2


@pytest.mark.parametrize(("pooled", "operations"), [(True, 1e13), (False, 9e8)])
def test_where_no_images_are_looked_for_there_is_a_cut_and_a_start(
    pooled: bool, operations: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = list[Tensor]()

    def smooth(cut: Cut, start: Tensor, *rest: Any) -> tuple[Tensor, Tensor, bool]:
        begun.append(start)
        return smooth_images(cut, start, *rest)

    monkeypatch.setattr(decoded_start, "smooth_images", smooth)
    model = Residual(pooled=pooled).eval()
    update, images, labels = update_of(model)
    found = recover_images(update, model, PeelingConfig(operations=operations))
    assert found.images is None
    assert found.cut is not None
    assert found.labels is not None
    order = torch.stack([(found.labels == label).nonzero()[0, 0] for label in labels])
    normalised = update.normalisation.apply(images)
    made = found.cut.forward(torch.float32, torch.device("cpu"))(normalised)
    for place, value in zip(found.cut.places, made, strict=True):
        torch.testing.assert_close(place.values[order].float(), value.clamp_min(0), atol=1e-3, rtol=1e-3)
    assert found.start is not None
    off = float((found.start.images[order].float() - normalised).square().mean().sqrt())
    assert found.start.fitted is pooled
    # What the decoder leaves of photos.
    decoded = float(((begun[0] if begun else found.start.images)[order].float() - normalised).square().mean().sqrt())
    assert decoded / 3 < found.start.error < 2 * decoded
    # Behind max-pooling its images were then made to have the features, and what is told of them is an upper error.
    assert bool(begun) is pooled
    assert found.start.error > off / 3
    assert off < 0.9 * decoded if pooled else off == decoded
    assert off < 0.7 * float((normalised.mean((2, 3), keepdim=True) - normalised).square().mean().sqrt())


DESCENT = "descent from what the decoder makes to images that have these features"
START = "start at what a decoder makes of the features"
WINNERS = "start at images whose winners of the max-pooling have the values that are known"


@dataclasses.dataclass(frozen=True)
class Behind:
    """Max-pooling, and what was derived and recovered."""

    model: nn.Module
    update: CapturedUpdate
    derivation: Derivation
    found: Recovery


@pytest.fixture(scope="module")
def pooled() -> Behind:
    model, derived = Residual(pooled=True).eval(), list[Derivation]()
    update = update_of(model)[0]

    def kept(*given: Any, **named: Any) -> Derivation:
        derived.append(derive(*given, **named))
        return derived[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fewer_images, "derive", kept)
        found = recover_images(update, model)
    return Behind(model, update, derived[0], found)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("stem", [False, True])
@pytest.mark.parametrize(("start", "fitted"), [(True, True), (True, False), (False, False)])
def test_behind_max_pooling_the_key_is_named_for_what_it_left_out_and_never_as_the_way_to_the_images(
    coupled: bool,
    stem: bool,
    start: bool,
    fitted: bool,
    pooled: Behind,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = pooled.found.start if start else None
    monkeypatch.setattr(fewer_images, "derive", lambda *_, **__: pooled.derivation)
    monkeypatch.setattr(Cut, "is_coupled", coupled)
    monkeypatch.setattr(recovery, "find_stem", lambda *_: object() if stem else None)
    monkeypatch.setattr(recovery, "winners_operations", lambda _: 2.5e13)
    monkeypatch.setattr(recovery, "decoded_start", lambda *_: (given, None))
    misfit = torch.tensor([0.01]) if fitted else None
    smooth = None if given is None else decoded_start.SmoothStart(given, None, misfit)
    monkeypatch.setattr(recovery, "smooth_start", lambda *_: smooth)
    message = recover_images(pooled.update, pooled.model, PeelingConfig(operations=1.5e13)).message
    assert "No images are looked for: max-pooling in front of these features hides all pixels" in message
    wanted = {WINNERS: stem, START: not start, DESCENT: start and not fitted}
    assert {part: part in message for part in wanted} == wanted
    assert message.count("peeling.operations=1.5e+13") == any(wanted.values())
    assert ("each take more" in message) is (sum(wanted.values()) > 1)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(("fitted", "widened"), [(True, True), (True, False), (False, False)])
def test_what_the_contrast_of_the_start_is_follows_from_what_was_done(
    hidden: bool, fitted: bool, widened: bool, pooled: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pooled.found.start is not None
    made = decoded_start.SmoothStart(pooled.found.start, None, torch.tensor([0.01]) if fitted else None, widened)
    monkeypatch.setattr(recovery, "smooth_start", lambda *_: made)
    monkeypatch.setattr(fewer_images, "derive", lambda *_, **__: pooled.derivation)
    monkeypatch.setattr(recovery, "find_stem", lambda *_: None)
    monkeypatch.setattr(recovery, "contrast_of", lambda *_: Contrast.HIDDEN if hidden else Contrast.SEEN)
    message = recover_images(pooled.update, pooled.model).message
    assert (WIDEST in message) is widened
    assert ("what the decoder learnt of public photos" in message) is (hidden and not fitted)


def test_winners_that_fit_the_operations_but_have_no_start_name_the_key(
    pooled: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fewer_images, "derive", lambda *_, **__: pooled.derivation)
    monkeypatch.setattr(recovery, "find_stem", lambda *_: object())
    monkeypatch.setattr(recovery, "winners_operations", lambda _: 1.0)
    monkeypatch.setattr(recovery, "decoded_start", lambda *_: (None, None))
    message = recover_images(pooled.update, pooled.model).message
    assert message.endswith(f"won. A {START} would take more than peeling.operations=1e+13 and was left out.")


@pytest.mark.parametrize("again", [0, 2])
def test_what_features_leave_open_is_not_the_starts_where_a_descent_began_again(
    again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Residual().eval()
    update, _, _ = update_of(model)
    left = torch.full((4,), 1e-5, dtype=torch.float64)

    def descend(_: ImageSearch, cut: Cut, start: Tensor, evaluations: int) -> Descended:
        return Descended(start.double(), left, left, left < 1e-3, evaluations, again)

    monkeypatch.setattr(ImageSearch, "descend", descend)
    message = recover_images(update, model).message
    assert ("what the features leave open of an image is what the start had there." in message) is not again
    assert ("at 2 of the 4 images the descent got stuck and began again" in message) is bool(again)
    assert ("the start or such a blurred image." in message) is bool(again)


def test_parts_of_a_batch_are_told_as_one_descent(pooled: Behind, monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str]()
    assert pooled.found.cut is not None
    monkeypatch.setattr(decoded_start, "_AT_ONCE", 2 * PIXELS**2)  # two of the four images
    monkeypatch.setattr(decoded_start, "descents", lambda cut: dataclasses.replace(descents(cut), steps=100, most=1))
    search = ImageSearch(pooled.update, PeelingConfig(), tell=told.append)
    start = decoded_start.smooth_start(search, pooled.found.cut)
    assert start is not None
    assert len(start.decoded.images) == 4
    steps = [words for words in told if "step" in words]
    assert steps == [f"images that have the features and are smooth, step {20 * one} of 200" for one in range(1, 11)]

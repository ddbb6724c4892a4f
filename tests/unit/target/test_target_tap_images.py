from __future__ import annotations

import functools
import pickle
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.agents import Agent, AgentsConfig, Objective, ObjectiveConfig
from gradinversion.audit import psnr
from gradinversion.capture import CapturedUpdate, capture_gradient, load_images
from gradinversion.capture.facts import all_assumed
from gradinversion.coordinator import AttackConfig
from gradinversion.peeling import PeelingConfig, decoded_start, recovery
from gradinversion.peeling.cut import descents, refine
from gradinversion.peeling.image_search import ImageSearch
from gradinversion.peeling.record import Contrast
from gradinversion.peeling.recovered import Recovery
from gradinversion.peeling.recovery import recover_images
from gradinversion.peeling.wording import summary
from gradinversion.target import tap_images
from gradinversion.target.preparation import Preparation, prepare
from torch import Tensor, nn

PIXELS = 8
# What these small networks need; with more, tests that end without images go on for much longer.
ENOUGH = PeelingConfig(operations=3e10)


class Residual(nn.Module):
    """So few places for its channels that all of it follows from linear equations."""

    def __init__(self, stem: int = 32, stride: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, stem, 3, stride, padding=1)
        self.halved = nn.Conv2d(stem, 64, 3, stride=2, padding=1)
        self.quartered = nn.Conv2d(64, 64, 3, stride=2, padding=1)
        self.conv1 = nn.Conv2d(64, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1)
        self.fc = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        value = F.relu(self.quartered(F.relu(self.halved(F.relu(self.stem(images))))))
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(value))) + value).mean((2, 3)))


@pytest.fixture
def case() -> tuple[nn.Module, CapturedUpdate, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    blotches = 3 * torch.randn(3, 3, 3, 3, generator=generator)
    grain = 0.3 * torch.randn(3, 3, PIXELS, PIXELS, generator=generator)
    images = torch.sigmoid(F.interpolate(blotches, PIXELS, mode="bilinear", align_corners=True) + grain)
    labels = torch.tensor([8, 1, 5])
    model = Residual().eval()
    return model, capture_gradient(model, images, labels), images, labels


Case = tuple[nn.Module, CapturedUpdate, Tensor, Tensor]


@pytest.mark.parametrize("told", ["auto", "1,5,8", "8,5,1"])
def test_the_anchor_is_the_images_in_the_order_of_their_labels(case: Case, told: str) -> None:
    model, update, images, labels = case
    prepared = prepare(update, model, AttackConfig(labels=told).request)
    anchor = prepared.target.anchor
    assert anchor is not None
    assert anchor.module == "stem"
    assert set(anchor.explained) == set(update.gradients)
    assert prepared.labels.labels.tolist() == [1, 5, 8]
    expected = update.normalisation.apply(images[labels.argsort()].double())
    off = (anchor.activations - expected).norm() / expected.norm()
    assert off < 1e-4
    assert anchor.error > float(off) / 10
    assert any("the images themselves" in message for message in prepared.messages)
    assert prepared.peeling is not None
    assert prepared.peeling.whole


def _is_of_the_images(prepared: Preparation, case: Case) -> bool:
    _, update, images, labels = case
    anchor = prepared.target.anchor
    expected = update.normalisation.apply(images[labels.argsort()].double())
    return (
        anchor is not None
        and anchor.module == "stem"
        and float((anchor.activations - expected).norm() / expected.norm()) < 1e-3
    )


def test_images_of_hidden_contrast_are_not_known_however_much_is_tolerated(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, update, _, _ = case

    def hidden(*given: Any, **named: Any) -> Recovery:
        found = recover_images(*given, **named)
        assert found.images is not None
        assert found.record is not None
        return replace(found, record=replace(found.record, contrast=Contrast.HIDDEN))

    monkeypatch.setattr(tap_images, "recover_images", hidden)
    config = AttackConfig(peeling=PeelingConfig(tolerance=0.9))
    anchor = prepare(update, model, config.request).target.anchor
    assert anchor is None or anchor.module != "stem"


def test_labels_that_are_not_those_of_the_images_are_contradicted(case: Case) -> None:
    model, update, _, _ = case
    prepared = prepare(update, model, AttackConfig(labels="1,5,9").request)
    assert _is_of_the_images(prepared, case)
    assert prepared.labels.labels.tolist() == [1, 5, 8]
    assert any("the update shows class 8 where class 9 was given" in message for message in prepared.messages)


@pytest.mark.parametrize("labels", ["auto", "1,5,8", "1,1,9"])
@pytest.mark.parametrize("factor", [3.0, 0.125])
def test_a_loss_of_another_scale_leaves_the_images_as_they_are(case: Case, factor: float, labels: str) -> None:
    """A sum in place of the mean, accumulated batches, a clipped gradient: nobody told of it."""
    model, update, _, _ = case
    scaled = replace(update, gradients={name: factor * gradient for name, gradient in update.gradients.items()})
    scaled = replace(scaled, facts=all_assumed(update.facts, "the usual"))
    prepared = prepare(scaled, model, AttackConfig(labels=labels).request)
    assert _is_of_the_images(prepared, case)
    assert prepared.labels.labels.tolist() == [1, 5, 8]
    stated = {fact.name: fact.words for fact in prepared.facts}
    assert (stated["reduction"], stated["loss_scale"]) == (("sum", "1") if factor == 3.0 else ("mean", "0.125"))


def test_images_that_are_clipped_one_by_one_are_known_with_their_factors(case: Case) -> None:
    model, update, images, labels = case
    factors = torch.tensor([0.3, 1.0, 0.6])
    names = [name for name, _ in model.named_parameters()]
    losses = F.cross_entropy(model(update.normalisation.apply(images)), labels, reduction="none")
    found = torch.autograd.grad((factors * losses).mean(), list(model.parameters()))
    clipped = replace(update, gradients=dict(zip(names, found, strict=True)))
    prepared = prepare(clipped, model, AttackConfig().request)
    assert _is_of_the_images(prepared, case)
    assert prepared.target.anchor is not None
    assert prepared.target.anchor.scales == pytest.approx(factors[labels.argsort()].tolist(), rel=1e-2)
    assert any("clipped image by image" in message for message in prepared.messages)


def _photos(pixels: int) -> Tensor:
    # Inside the range of pixels: at its ends a descent is held by the bounds, and seems to be determined.
    return 0.2 + 0.6 * load_images("photos", 3, pixels)[0]


def test_images_with_the_right_features_that_are_others_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a narrow stem with a stride the features are fewer than the pixels, and a descent meets them anywhere."""
    # As if they were as many: they may say the same of one pixel twice, and nothing of another.
    monkeypatch.setattr(recovery, "is_open_question", lambda cut: False)
    model, labels = Residual(stem=8, stride=2).eval(), torch.tensor([8, 1, 5])
    prepared = prepare(capture_gradient(model, _photos(16), labels), model, AttackConfig(peeling=ENOUGH).request)
    assert prepared.target.anchor is None or prepared.target.anchor.module != "stem"
    assert any("met the features of 3 of 3" in message for message in prepared.messages)
    assert any("others could have the same features" in message for message in prepared.messages)
    assert prepared.known is not None
    assert prepared.known.module != "stem"
    assert prepared.target.cut is not None
    assert prepared.target.start is not None
    assert not prepared.target.start.is_known
    assert prepared.peeling is not None
    assert (prepared.peeling.decoded, prepared.peeling.whole) == (True, False)


def test_features_that_are_fewer_than_the_pixels_give_a_start_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded_start, "refine", functools.partial(refine, steps=5))
    monkeypatch.setattr(decoded_start, "descents", lambda cut: replace(descents(cut), steps=100, most=1))
    model, labels = Residual(stem=8, stride=2).eval(), torch.tensor([8, 1, 5])
    prepared = prepare(capture_gradient(model, _photos(16), labels), model, AttackConfig(peeling=ENOUGH).request)
    assert prepared.target.anchor is None or prepared.target.anchor.module != "stem"
    assert any("fewer than an image has pixel values" in message for message in prepared.messages)
    assert prepared.target.cut is not None
    assert prepared.target.start is not None
    assert (prepared.target.start.fitted, prepared.target.start.is_known) == (True, False)
    assert prepared.peeling is not None
    assert (prepared.peeling.decoded, prepared.peeling.whole) == (True, False)


@pytest.mark.parametrize("zeroed", ["stem.", "halved.", "quartered.", "conv1.", "conv2."])
def test_a_gradient_of_zeros_ends_no_attack(case: Case, zeroed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded_start, "descents", lambda cut: replace(descents(cut), steps=100, most=1))
    model, update, images, labels = case
    gradients = {n: g * 0 if n.startswith(zeroed) else g for n, g in update.gradients.items()}
    prepared = prepare(replace(update, gradients=gradients), model, AttackConfig(peeling=ENOUGH).request)
    anchor = prepared.target.anchor
    if anchor is not None and anchor.module == "stem":
        expected = update.normalisation.apply(images[labels.argsort()].double())
        assert (anchor.activations - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("left_out", [{"taps": False}, {"operations": 0.0}, {"enabled": False}])
def test_it_can_be_left_out(case: Case, left_out: dict[str, float]) -> None:
    model, update, _, _ = case
    prepared = prepare(update, model, AttackConfig(peeling=PeelingConfig(**left_out)).request)  # type: ignore[arg-type]
    assert prepared.target.anchor is None or prepared.target.anchor.module != "stem"


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"peeling\.operations=-1"):
        PeelingConfig(operations=-1)


class _Decides(Residual):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if float(images.sum()) > -1e9 else -images)


class _Twice(Residual):
    def forward(self, images: Tensor) -> Tensor:
        value = F.relu(self.quartered(F.relu(self.halved(F.relu(self.stem(images))))))
        inner = F.relu(self.conv1(F.relu(self.conv1(value))))
        return self.fc(inner.mean((2, 3)))


class _Tied(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.conv2.weight = self.conv1.weight


class _Reflects(Residual):
    def __init__(self) -> None:
        super().__init__()
        for name in ("stem", "halved", "quartered", "conv1", "conv2"):
            own = getattr(self, name)
            setattr(self, name, nn.Conv2d(own.in_channels, own.out_channels, 3, own.stride, 1, padding_mode="reflect"))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_a_stem_that_pads_with_the_images_own_pixels_is_crossed(case: Case, mode: Any) -> None:
    _, update, images, labels = case
    model = Residual().eval()
    model.stem = nn.Conv2d(3, 32, 3, padding=1, padding_mode=mode)
    update = capture_gradient(model, images, labels)
    prepared = prepare(update, model, AttackConfig().request)
    assert _is_of_the_images(prepared, (model, update, images, labels))


class _Frozen(Residual):
    def __init__(self) -> None:
        super().__init__()
        for module in (self.stem, self.halved, self.quartered, self.conv1, self.conv2):
            module.requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (_Decides, "it decides by the content of its images"),
        (_Twice, "the gradient of conv1.weight is a sum over several uses of one weight"),
        (_Tied, "the gradient of conv1.weight is a sum over several uses of one weight"),
        (_Reflects, "padded with its own numbers (reflected, repeated or from the other side)"),
        (_Frozen, "the update holds no gradient of stem.weight, conv1.weight, conv2.weight"),
    ],
)
def test_what_stands_in_the_way_is_one_sentence_and_the_attack_goes_on(
    case: Case, make: type[Residual], sentence: str
) -> None:
    _, _, images, labels = case
    model = make().eval()
    prepared = prepare(capture_gradient(model, images, labels), model, AttackConfig().request)
    assert prepared.labels.labels.tolist() == [1, 5, 8]
    assert prepared.target.anchor is not None
    assert prepared.target.anchor.module == "fc"
    assert sum(sentence in message for message in prepared.messages) == 1
    assert prepared.peeling is not None
    assert sentence.removeprefix("the ") in summary(prepared.peeling)


class _Smooth(_Reflects):
    """Zeros around the grids would not help: no rectifier is in front of any convolution."""

    def forward(self, images: Tensor) -> Tensor:
        value = F.gelu(self.quartered(F.gelu(self.halved(F.gelu(self.stem(images))))))
        return self.fc(F.gelu(self.conv2(F.gelu(self.conv1(value))) + value).mean((2, 3)))


def test_padding_is_not_blamed_where_zeros_would_not_help(case: Case) -> None:
    _, _, images, labels = case
    model = _Smooth().eval()
    prepared = prepare(capture_gradient(model, images, labels), model, AttackConfig().request)
    assert not any("padded with its own numbers" in message for message in prepared.messages)


def test_without_a_gradient_in_the_middle_the_descent_reaches_the_images(case: Case) -> None:
    model, update, _, _ = case
    sent = {name: gradient for name, gradient in update.gradients.items() if not name.startswith("halved")}
    prepared = prepare(replace(update, gradients=sent), model, AttackConfig().request)
    assert _is_of_the_images(prepared, case)
    assert any("lacks the gradients of 2 of the 12 tensors" in message for message in prepared.messages)


class Pooled(Residual):
    """With max-pooling behind the stem."""

    def forward(self, images: Tensor) -> Tensor:
        stem = F.max_pool2d(F.relu(self.stem(images)), 3, 1, 1)
        value = F.relu(self.quartered(F.relu(self.halved(stem))))
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(value))) + value).mean((2, 3)))


@dataclass(frozen=True)
class Behind:
    """Three photos behind max-pooling, in the order of their labels as the model is given them, and what was found."""

    model: nn.Module
    update: CapturedUpdate
    images: Tensor
    truth: Tensor
    prepared: Preparation


@pytest.fixture(scope="module")
def pooled() -> Behind:
    model, images, labels = Pooled().eval(), _photos(12), torch.tensor([8, 1, 5])
    update = capture_gradient(model, images, labels)
    images = images[labels.argsort()]
    prepared = prepare(update, model, AttackConfig(seed=4, peeling=ENOUGH).request)
    return Behind(model, update, images, update.normalisation.apply(images), prepared)


def test_features_behind_max_pooling_are_the_cut_in_the_order_of_the_labels(pooled: Behind) -> None:
    prepared, target, truth = pooled.prepared, pooled.prepared.target, pooled.truth
    assert prepared.labels.labels.tolist() == [1, 5, 8]
    assert target.cut is not None
    assert target.cut.is_pooled
    for place, value in zip(target.cut.places, target.cut.forward(torch.float32, truth.device)(truth), strict=True):
        torch.testing.assert_close(place.values.float(), value.clamp_min(0), atol=1e-3, rtol=1e-3)
    assert target.start is not None
    assert target.start.seed == 4
    constant = truth.mean((2, 3), keepdim=True)
    off, flat = (((one - truth).square().mean((1, 2, 3))) for one in (target.start.images, constant))
    # The decoder alone leaves a share of 0.8 at most; winners that have the pooled values leave much less.
    assert bool((off < 0.1 * flat).all()), off / flat
    assert prepared.known is not None
    assert any("Seeds descend on these features" in message for message in prepared.messages)
    assert any("was in the batch" in message for message in prepared.messages)


def test_where_winners_of_the_pooling_are_not_known_the_start_has_the_features_and_is_smooth(
    pooled: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "find_stem", lambda *_: None)
    monkeypatch.setattr(decoded_start, "_AT_ONCE", 300)  # two of the three images
    found = recover_images(pooled.update, pooled.model, ENOUGH)
    assert found.cut is not None
    assert found.cut.is_pooled
    assert found.images is None
    assert found.start is not None
    assert found.start.fitted
    assert "hides all pixels but those that won, and many images have them" in found.message
    search = ImageSearch(pooled.update, ENOUGH)
    decoded, _ = decoded_start.decoded_start(search, found.cut)
    assert decoded is not None
    apart = torch.cdist(found.start.images.float().flatten(1), pooled.truth.flatten(1))
    assert sorted(apart.argmin(dim=1).tolist()) == [0, 1, 2]
    before = torch.cdist(decoded.images.float().flatten(1), pooled.truth.flatten(1)).amin(dim=1)
    assert bool((apart.amin(dim=1) < 0.8 * before).all()), apart.amin(dim=1) / before


def test_a_target_with_a_cut_travels_without_the_network_behind_it(pooled: Behind) -> None:
    target = pooled.prepared.target
    assert target.cut is not None
    assert {name.partition(".")[0] for name in target.cut.graph.tensors} <= {"stem", "halved", "quartered"}
    found = Objective(pickle.loads(pickle.dumps(target)), ObjectiveConfig())
    assert float(found.terms(pooled.truth)["activation"]) < 1e-3
    start = target.start
    assert start is not None
    expected = Objective(target, ObjectiveConfig()).terms(start.images)["activation"]
    assert torch.equal(found.terms(start.images)["activation"], expected)


def test_seeds_that_begin_off_by_the_decoders_error_end_nearer_to_the_images(pooled: Behind) -> None:
    target, images = pooled.prepared.target, pooled.images
    assert target.start is not None
    off = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    target = replace(target, start=replace(target.start, images=pooled.truth + target.start.error.mean() * off))
    assert target.start is not None
    begun = psnr(pooled.update.normalisation.invert(target.start.images).clamp(0, 1), images)
    config = AgentsConfig(iterations=60)
    for seed in (4, 5):
        agent = Agent(target, ObjectiveConfig(), config, seed)
        agent.run(60)
        found = psnr(pooled.update.normalisation.invert(agent.images).clamp(0, 1), images)
        assert float((found - begun).min()) > 1

"""The images behind a weight delta, prepared as an attack begins."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from gradinversion.agents import Objective, ObjectiveConfig
from gradinversion.audit import psnr
from gradinversion.capture import (
    IMAGENET,
    BatchNormMode,
    CapturedUpdate,
    LocalTraining,
    RecoveredLabels,
    assumed,
    capture_weight_delta,
    told,
    train_locally,
)
from gradinversion.coordinator import AttackConfig
from gradinversion.peeling import PeelingConfig, visit_recovery
from gradinversion.peeling.cut import NoCut, photo_crops, public_photos
from gradinversion.target.preparation import Preparation, prepare
from gradinversion.target.step_rates import check_rates
from gradinversion.target.visit_images import images_by_visits
from torch import Tensor, nn

PIXELS = 8
LABELS = torch.tensor([8, 1, 5, 3])


class Block(nn.Module):
    """Two convolutions and a skip."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(entering, leaving, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(leaving)
        self.conv2 = nn.Conv2d(leaving, leaving, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(leaving)
        self.down = nn.Sequential() if stride == 1 else nn.Conv2d(entering, leaving, 1, stride, bias=False)

    def forward(self, value: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(value))))) + self.down(value))


def network() -> nn.Sequential:
    """Places 8 x 8, 4 x 4, 2 x 2."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    blocks = [Block(32, 64, 2), Block(64, 96, 2), Block(96, 96, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)).eval()


def photos(count: int = 4) -> Tensor:
    """Crops that the decoder is not fitted on in the same places."""
    return (255 * photo_crops(list(public_photos().values()), (PIXELS, PIXELS), count, seed=77)).round() / 255


def sent(local: LocalTraining) -> CapturedUpdate:
    return train_locally(network(), photos(), LABELS, local=local)


@pytest.fixture(scope="module")
def prepared() -> Preparation:
    """Two epochs of two steps of two, with momentum."""
    update = sent(LocalTraining(0.05, epochs=2, batch_size=2, momentum=0.5))
    return prepare(update, network(), AttackConfig().request)


def test_the_anchor_is_every_image_once_in_the_order_of_the_steps(prepared: Preparation) -> None:
    anchor = prepared.target.anchor
    assert anchor is not None, prepared.messages
    labels = prepared.labels.labels.tolist()
    assert sorted(labels[:2]) == sorted(LABELS[:2].tolist())
    assert sorted(labels[2:]) == sorted(LABELS[2:].tolist())
    order = [LABELS.tolist().index(label) for label in labels]
    found = prepared.target.update.normalisation.invert(anchor.activations).clamp(0, 1)
    assert float(psnr(found.float(), photos()[order]).min()) > 40
    assert prepared.limits == ()
    assert "follows from the features of its visits" in prepared.training
    assert prepared.peeling is not None
    assert prepared.peeling.whole
    assert prepared.peeling.local_steps == 4
    assert prepared.peeling.image_count == 8


def test_seeds_begin_at_these_images_and_leave_nothing(prepared: Preparation) -> None:
    start = prepared.target.start
    assert start is not None
    assert start.is_known
    objective = Objective(prepared.target, ObjectiveConfig())
    assert objective.peeled
    assert objective.gradient_loss(start.images.float()) < 0.1


def test_labels_that_are_given_keep_their_order() -> None:
    update = sent(LocalTraining(0.05, epochs=1, batch_size=2))
    told_of: list[str] = []
    found = prepare(update, network(), AttackConfig(labels="1,8,3,5").request, tell=told_of.append)
    assert found.labels.labels.tolist() == [1, 8, 3, 5]
    anchor = found.target.anchor
    assert anchor is not None, found.messages
    pixels = update.normalisation.invert(anchor.activations).clamp(0, 1)
    assert float(psnr(pixels.float(), photos()[[1, 0, 3, 2]]).min()) > 40
    for words in ("the network as a graph", "places known, last", "images of step 2 of 2", "a descent on the features"):
        assert any(words in one for one in told_of), words


def test_the_images_do_not_rest_on_the_learning_rate() -> None:
    """Gradients four times too small move the weights four times as far each: by what they did."""
    update = sent(LocalTraining(0.05, epochs=1, batch_size=2)).stating(learning_rate=told(0.2))
    found = prepare(update, network(), AttackConfig(labels="8,1,5,3").request)
    anchor = found.target.anchor
    assert anchor is not None
    pixels = update.normalisation.invert(anchor.activations).clamp(0, 1)
    assert float(psnr(pixels.float(), photos()).min()) > 40
    assert "at a learning rate of 0.05, and the facts say 0.2" in contradiction(found, "learning_rate")


def test_a_rate_that_is_read_in_place_of_an_assumed_one_is_the_one_that_is_retraced() -> None:
    update = sent(LocalTraining(0.05, epochs=1, batch_size=2)).stating(learning_rate=assumed(0.2))
    found = prepare(update, network(), AttackConfig(labels="8,1,5,3").request)
    local = found.target.update.local
    assert local is not None
    assert local.learning_rate == pytest.approx(0.05, rel=0.02)
    assert "learning rate 0.05, estimated by the server" in found.training
    fact = next(fact for fact in found.facts if fact.name == "learning_rate")
    assert (fact.provenance, fact.contradiction) == ("read", "")
    assert found.target.start is not None
    assert Objective(found.target, ObjectiveConfig()).gradient_loss(found.target.start.images.float()) < 0.1


def contradiction(found: Preparation, name: str) -> str:
    return next(fact.contradiction for fact in found.facts if fact.name == name)


def with_rates(rates: tuple[float, ...], momentum: float) -> CapturedUpdate:
    """A client who is told to have the first rate in every step of two images, and changes it."""
    model, count = network(), 2 * len(rates)
    after, images = copy.deepcopy(model), IMAGENET.apply(photos(count))
    labels = torch.cat([LABELS, (LABELS + 1) % 10])
    optimiser = torch.optim.SGD(after.parameters(), lr=rates[0], momentum=momentum)
    for step, rate in enumerate(rates):
        optimiser.param_groups[0]["lr"] = rate
        optimiser.zero_grad()
        part = slice(2 * step, 2 * step + 2)
        F.cross_entropy(after(images[part]), labels[part]).backward()
        optimiser.step()
    local = LocalTraining(rates[0], epochs=1, batch_size=2, momentum=momentum)
    shape = (3, PIXELS, PIXELS)
    return capture_weight_delta(
        model, after, image_count=count, image_shape=shape, local=local, normalisation=IMAGENET, batch_norm="eval"
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_learning_rate_that_changed_on_the_way_is_said_and_used(momentum: float) -> None:
    """With momentum the steps are taken apart again under the rates that they show."""
    update = with_rates((0.05, 0.02), momentum)
    found = prepare(update, network(), AttackConfig(labels="8,1,5,3").request)
    anchor = found.target.anchor
    assert anchor is not None, found.messages
    pixels = update.normalisation.invert(anchor.activations).clamp(0, 1)
    assert float(psnr(pixels.float(), photos()).min()) > 40
    said = contradiction(found, "learning_rate")
    assert "learning rates of 0.05 and 0.02, and the facts say 0.05 for each" in said
    assert found.limits == ()


def test_rates_that_decay_with_momentum_are_said_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps taken apart under the one that was told read rates off by more than these differ."""
    # The images are left out: they take a while, and rest on the rates.
    monkeypatch.setattr(visit_recovery, "find_cut", lambda derivation: NoCut("not asked for"))
    update = with_rates((0.05, 0.04, 0.03, 0.02), 0.9)
    found = visit_recovery.recover_visits(update, network())
    assert found.sizes is not None
    assert found.sizes.rates == pytest.approx((1, 0.8, 0.6, 0.4), rel=0.02)
    assert not found.sizes.constant
    assert not found.sizes.vague
    assert "learning_rate" in check_rates(update, found.sizes, known=True).contradictions


def test_rates_that_do_not_show_are_said_not_to() -> None:
    found = prepare(with_rates((0.05, 0.2), 0.9), network(), AttackConfig(labels="8,1,5,3").request)
    assert found.target.anchor is None
    assert any("The learning rate of each step does not show" in one for one in found.messages)


def test_a_learning_rate_that_stayed_as_it_was_told_is_not_spoken_of(prepared: Preparation) -> None:
    assert contradiction(prepared, "learning_rate") == ""


def test_another_momentum_than_the_clients_is_no_anchor() -> None:
    update = sent(LocalTraining(0.05, epochs=2, batch_size=2, momentum=0.9)).stating(momentum=told(0.0))
    found = prepare(update, network(), AttackConfig().request)
    assert found.target.anchor is None
    assert any(
        "the momentum is another than the facts say or the learning rate changed" in one for one in found.messages
    )


def test_taps_left_out_are_left_out() -> None:
    update = sent(LocalTraining(0.05, epochs=1, batch_size=2))
    request = replace(AttackConfig().request, peeling=PeelingConfig(taps=False))
    found = prepare(update, network(), request)
    assert found.target.anchor is None
    assert found.peeling is None


def test_the_average_over_clients_that_trained_is_taken_apart() -> None:
    """Two clients of two steps each: no limit is left where their images are known."""
    local = LocalTraining(0.05, epochs=1, batch_size=1)
    ours = [train_locally(network(), photos()[part], LABELS[part], local=local) for part in (slice(0, 2), slice(2, 4))]
    gradients = {name: (one + ours[1].gradients[name]) / 2 for name, one in ours[0].gradients.items()}
    update = replace(ours[0], gradients=gradients).stating(image_count=told(4), clients=told(2))
    found = prepare(update, network(), AttackConfig().request)
    anchor = found.target.anchor
    assert anchor is not None, found.messages
    labels = found.labels.labels.tolist()
    order = [LABELS.tolist().index(label) for label in labels]
    # Both first steps stand first, then both second ones, the clients in one order.
    assert order in ([0, 2, 1, 3], [2, 0, 3, 1])
    pixels = update.normalisation.invert(anchor.activations).clamp(0, 1)
    assert float(psnr(pixels.float(), photos()[order]).min()) > 40
    assert found.limits == ()
    without = prepare(update, network(), replace(AttackConfig().request, peeling=PeelingConfig(taps=False)))
    assert "average of 2 clients, each with local steps of its own" in " ".join(without.limits)


def _of_two_clients(rates: tuple[float, float], momentum: float = 0.0) -> CapturedUpdate:
    """The average of two clients of two steps each, each with a rate of its own, told 0.1."""
    sent = [
        train_locally(
            network(), photos()[part], LABELS[part], local=LocalTraining(rate, batch_size=1, momentum=momentum)
        )
        for rate, part in zip(rates, (slice(0, 2), slice(2, 4)), strict=True)
    ]
    average = {name: (one + sent[1].gradients[name]) / 2 for name, one in sent[0].gradients.items()}
    stated = {"image_count": told(4), "clients": told(2), "learning_rate": told(0.1)}
    return replace(sent[0], gradients=average).stating(**stated)


@pytest.mark.parametrize(
    ("rates", "momentum", "words"),
    [
        ((0.1, 0.1), 0.0, None),
        ((0.05, 0.05), 0.9, "at a learning rate of 0.05, and the facts say 0.1"),
        ((0.05, 0.02), 0.0, "(first all 2 clients' first steps), and the facts say 0.1 for each"),
    ],
)
def test_the_rates_of_several_clients_are_read(
    monkeypatch: pytest.MonkeyPatch, rates: tuple[float, float], momentum: float, words: str | None
) -> None:
    monkeypatch.setattr(visit_recovery, "find_cut", lambda derivation: NoCut("not asked for"))
    update = _of_two_clients(rates, momentum)
    found = visit_recovery.recover_visits(update, network())
    assert found.sizes is not None
    first = sorted(0.1 * one for one in found.sizes.rates[:2])
    assert first == pytest.approx(sorted(rates), rel=0.02)
    said = check_rates(update, found.sizes, known=True).contradictions
    assert said == {} if words is None else words in said["learning_rate"]


def test_rates_are_read_under_weight_decay_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visit_recovery, "find_cut", lambda derivation: NoCut("not asked for"))
    update = sent(LocalTraining(0.05, epochs=1, batch_size=2, momentum=0.9, weight_decay=5e-4))
    found = visit_recovery.recover_visits(update, network())
    assert found.sizes is not None
    assert found.sizes.rates == pytest.approx((1, 1), rel=0.02)
    # Far from the true rate what is left of the weights hides the visits, which is said.
    other = prepare(update.stating(learning_rate=told(0.1)), network(), AttackConfig().request)
    assert other.target.anchor is None
    assert any("the learning rate, the momentum or the number of steps is another" in one for one in other.messages)


def test_clients_of_unlike_numbers_of_images_are_a_sentence() -> None:
    update = sent(LocalTraining(0.05, epochs=1, batch_size=1)).stating(clients=told(3))
    found = prepare(update, network(), AttackConfig().request)
    assert found.target.anchor is None
    assert any("4 images are not as many for each of 3" in message for message in found.messages)


def test_images_of_8_bit_files_keep_later_steps_as_exact_as_the_first() -> None:
    """Rounded before a step is made again with them, they open no unit that was shut."""
    update = sent(LocalTraining(0.05, epochs=1, batch_size=1))
    anchor = prepare(update, network(), AttackConfig(labels="8,1,5,3").request).target.anchor
    assert anchor is not None
    pixels = update.normalisation.invert(anchor.activations).clamp(0, 1)
    assert float(psnr(pixels.float(), photos()).min()) > 85


def test_batch_statistics_of_several_clients_are_said_to_be_in_the_way() -> None:
    local = LocalTraining(0.05, epochs=1, batch_size=2)
    update = train_locally(network(), photos(), LABELS, local=local, batch_norm=BatchNormMode.TRAIN_PRIVATE)
    made = images_by_visits(
        replace(update, facts=update.facts.stating(clients=told(2))), network(), _labels(), False, PeelingConfig()
    )
    assert made is not None
    assert made.anchor is None
    assert "batch norm ran on each batch's own statistics" in made.message


def test_steps_of_one_client_on_batch_statistics_are_taken_apart() -> None:
    local = LocalTraining(0.05, epochs=1, batch_size=2)
    update = train_locally(network(), photos(), LABELS, local=local, batch_norm=BatchNormMode.TRAIN_PRIVATE)
    made = images_by_visits(update, network(), _labels(), False, PeelingConfig())
    assert made is not None
    assert "the weight delta determines" in made.message
    # Of the second step the features are not met, and its rate does not show.
    assert made.anchor is None
    assert "The learning rate of each step does not show" in made.message


def _labels() -> RecoveredLabels:
    return RecoveredLabels(LABELS, torch.ones(len(LABELS)), "given", "", ())


def test_steps_that_nobody_told_lead_to_the_images_too() -> None:
    """Told one epoch of one step in the place of two of two each."""
    update = sent(LocalTraining(0.05, epochs=2, batch_size=2, momentum=0.5))
    untold = update.stating(epochs=assumed(1), batch_size=assumed(None))
    prepared = prepare(untold, network(), AttackConfig().request)
    assert prepared.target.anchor is not None, prepared.messages
    assert prepared.target.update.local == update.local
    assert "the commonest is assumed" not in prepared.training
    assert "assumed of the client's epochs and batch size rests on the visits of images" in prepared.training

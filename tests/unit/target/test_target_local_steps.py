"""Local steps held against the weight delta, and read off it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import BatchNormMode, CapturedUpdate, Fact, LocalTraining, assumed, told, train_locally
from gradinversion.peeling.cut import photo_crops, public_photos
from gradinversion.peeling.rules.visits_read import VisitsRead
from gradinversion.target import local_steps, weigh_evidence
from gradinversion.target.local_steps import check_local_steps, shown_visits
from torch import Tensor, nn

PIXELS, IMAGES = 8, 4


class Block(nn.Module):
    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(entering, leaving, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(leaving)
        self.conv2 = nn.Conv2d(leaving, leaving, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(leaving)
        self.down = nn.Sequential() if stride == 1 else nn.Conv2d(entering, leaving, 1, stride, bias=False)

    def forward(self, value: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(value))))) + self.down(value))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Places 8 x 8, 4 x 4, 2 x 2."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    blocks = [Block(32, 64, 2), Block(64, 96, 2), Block(96, 96, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)).eval()


def sent(model: nn.Module, local: LocalTraining, mode: BatchNormMode = BatchNormMode.EVAL) -> CapturedUpdate:
    images = photo_crops(list(public_photos().values()), (PIXELS, PIXELS), IMAGES, seed=77)
    return train_locally(model, images, torch.tensor([8, 1, 5, 3]), local=local, batch_norm=mode)


TRUE = LocalTraining(0.05, epochs=2, batch_size=2, momentum=0.5)


@pytest.fixture(scope="module")
def update(model: nn.Module) -> CapturedUpdate:
    return sent(model, TRUE)


def test_visits_and_those_of_the_first_step_are_seen(model: nn.Module, update: CapturedUpdate) -> None:
    shown = shown_visits(update, model)
    assert shown is not None
    assert (shown.visits, shown.first) == (8, 2)


def test_what_was_told_rightly_is_not_spoken_of(model: nn.Module, update: CapturedUpdate) -> None:
    found = check_local_steps(update, model)
    assert (found.facts, found.contradictions, found.messages) == ({}, {}, ())


def test_steps_that_nobody_told_are_read(model: nn.Module, update: CapturedUpdate) -> None:
    untold = update.stating(epochs=assumed(1), batch_size=assumed(None))
    evidence = weigh_evidence(untold, model)
    assert evidence.update.local == TRUE
    local = evidence.update.facts.local
    assert local is not None
    # There may be more that merged: what is used stays in doubt.
    assert (local.epochs.provenance, local.batch_size.provenance) == ("assumed", "assumed")
    assert not {"epochs", "batch_size"} & set(evidence.contradictions)
    words = "At least 8 visits of images show in the weight delta, as in 2 epochs of steps of 2"
    assert any(words in message for message in evidence.messages)


@pytest.mark.parametrize(("epochs", "size"), [(1, 2), (2, None), (1, None)])
def test_steps_told_wrongly_give_way_to_what_the_delta_shows(
    model: nn.Module, update: CapturedUpdate, epochs: int, size: int | None
) -> None:
    wrong = update.stating(epochs=told(epochs), batch_size=told(size))
    evidence = weigh_evidence(wrong, model)
    assert evidence.update.local == TRUE
    said = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    words = f"where the facts say {said} of steps of {size or IMAGES}; what it shows is used."
    assert any(words in message for message in evidence.messages), evidence.messages


def test_epochs_that_do_not_divide_are_spoken_of(model: nn.Module, update: CapturedUpdate) -> None:
    wrong = {"image_count": told(3), "batch_size": told(2)}
    found = check_local_steps(update.stating(**wrong, epochs=assumed(1)), model)
    assert not found.facts
    assert (
        "at least 8 visits of images show in the weight delta, more than 1 epoch of 3 images make"
        in found.contradictions["epochs"]
    )


@pytest.mark.parametrize("size", [2, None])
def test_visits_of_more_images_in_the_epochs_that_were_told_are_those_of_so_many(
    model: nn.Module, update: CapturedUpdate, size: int | None
) -> None:
    evidence = weigh_evidence(update.stating(image_count=told(3), batch_size=told(size)), model)
    assert evidence.update.local == TRUE
    count = evidence.update.facts.image_count
    assert (count.value, count.provenance) == (IMAGES, "assumed")
    words = "more than 2 epochs of 3 images make; in as many epochs 4 images make them, and 4 are attacked"
    assert "epochs" not in evidence.contradictions
    assert words in evidence.contradictions["image_count"]
    assert any(words in message for message in evidence.messages)
    assert any("is a lower bound, which nobody told" in limit for limit in evidence.limits)


def test_a_rate_that_is_not_known_changes_nothing(model: nn.Module, update: CapturedUpdate) -> None:
    untold = update.stating(learning_rate=assumed(None), epochs=told(1), batch_size=told(None))
    found = check_local_steps(untold, model)
    assert {name: fact.value for name, fact in found.facts.items()} == {"epochs": 2, "batch_size": 2}


@pytest.mark.parametrize("rate", [1e-3, 3e-3, 1e-2])
@pytest.mark.parametrize("size", [2, None])
def test_visits_that_small_steps_merge_replace_and_contradict_nothing(
    model: nn.Module, rate: float, size: int | None
) -> None:
    true = replace(TRUE, learning_rate=rate, batch_size=size)
    update = sent(model, true)
    evidence = weigh_evidence(update, model)
    assert evidence.update.local == true
    assert not {"epochs", "batch_size"} & set(evidence.contradictions)
    assert any("shows 4 visits of images, and the facts make 8" in message for message in evidence.messages)


def test_one_epoch_that_small_steps_show_stays_in_doubt(model: nn.Module) -> None:
    """Two epochs look like one."""
    update = sent(model, replace(TRUE, learning_rate=1e-3)).stating(epochs=assumed(1), batch_size=assumed(None))
    local = weigh_evidence(update, model).update.facts.local
    assert local is not None
    assert local.epochs.assumed
    assert local.batch_size.assumed


def test_a_step_of_one_epoch_that_nobody_told_stays_in_doubt(model: nn.Module) -> None:
    one = sent(model, LocalTraining(0.05, batch_size=2)).stating(epochs=assumed(1), batch_size=assumed(None))
    found = check_local_steps(one, model)
    assert {name: (fact.value, fact.assumed) for name, fact in found.facts.items()} == {"batch_size": (2, True)}
    settled = check_local_steps(one.stating(epochs=told(1)), model)
    assert {name: (fact.value, fact.assumed) for name, fact in settled.facts.items()} == {"batch_size": (2, False)}


def test_equal_images_merge_visits(model: nn.Module) -> None:
    image = photo_crops(list(public_photos().values()), (PIXELS, PIXELS), 1, seed=77)
    true = LocalTraining(0.05, epochs=2)
    update = train_locally(
        model, image.repeat(2, 1, 1, 1), torch.tensor([8, 8]), local=true, batch_norm=BatchNormMode.EVAL
    )
    found = check_local_steps(update, model)
    assert (found.facts, found.contradictions) == ({}, {})


@pytest.mark.parametrize(("epochs", "images"), [(4, 4), (2, 5)])
def test_fewer_visits_than_told_are_no_contradiction(
    model: nn.Module, update: CapturedUpdate, epochs: int, images: int
) -> None:
    found = check_local_steps(update.stating(image_count=told(images), epochs=told(epochs)), model)
    assert (found.facts, found.contradictions) == ({}, {})
    (message,) = found.messages
    assert f"shows 8 visits of images, and the facts make {images * epochs}" in message


def test_a_step_that_was_told_stands_where_one_visit_speaks_against_it(
    model: nn.Module, update: CapturedUpdate
) -> None:
    found = check_local_steps(update.stating(batch_size=told(3)), model)
    assert (found.facts, found.contradictions, found.messages) == ({}, {}, ())


def test_epochs_without_a_first_step_that_stands_out_stay_in_doubt(
    model: nn.Module, update: CapturedUpdate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_steps, "visits_read", lambda *_: VisitsRead(8, None))
    found = check_local_steps(update.stating(epochs=told(1)), model)
    assert (found.facts["epochs"].value, found.facts["epochs"].assumed) == (2, True)
    assert found.messages == (
        "At least 8 visits of images show in the weight delta, as in 2 epochs, where the facts say 1 epoch; what it "
        "shows is used.",
    )


def test_the_look_has_a_limit(model: nn.Module, update: CapturedUpdate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_steps, "_MOST_OPERATIONS", 1e3)
    assert shown_visits(update, model) is None


def test_nothing_that_another_check_contradicts_is_resolved(model: nn.Module, update: CapturedUpdate) -> None:
    found = check_local_steps(update.stating(epochs=told(1), batch_size=told(None)), model)
    assert found.facts
    assert not found.resolved


def test_one_step_shows_no_size(model: nn.Module) -> None:
    """All visits obey the weights that were sent: that there is one step, or one epoch, alone is not claimed."""
    one = sent(model, LocalTraining(0.05))
    found = check_local_steps(one.stating(epochs=assumed(1), batch_size=assumed(None)), model)
    assert (found.facts, found.contradictions, found.messages) == ({}, {}, ())


def test_one_step_that_was_told_is_not_spoken_of(model: nn.Module) -> None:
    found = check_local_steps(sent(model, LocalTraining(0.05)), model)
    assert (found.facts, found.contradictions, found.messages) == ({}, {}, ())


def test_fewer_visits_of_batch_statistics_replace_nothing(model: nn.Module) -> None:
    once = sent(model, replace(TRUE, epochs=1), BatchNormMode.TRAIN_SHARED)
    found = check_local_steps(once.stating(epochs=assumed(3)), model)
    assert (found.facts, found.contradictions, found.messages) == ({}, {}, ())


@pytest.fixture(scope="module")
def private(model: nn.Module) -> CapturedUpdate:
    return sent(model, TRUE, BatchNormMode.TRAIN_PRIVATE)


def test_visits_of_batch_statistics_told_rightly_are_not_spoken_of(model: nn.Module, private: CapturedUpdate) -> None:
    found = check_local_steps(private, model)
    assert (found.facts, found.contradictions, found.messages) == ({}, {}, ())


@pytest.mark.parametrize("size", [assumed(None), told(4)])
def test_steps_of_batch_statistics_are_counted_where_the_epochs_are_right(
    model: nn.Module, private: CapturedUpdate, size: Fact[int | None]
) -> None:
    """Of three and one image they would be as many, so that the size is the mean and stays in doubt."""
    found = check_local_steps(private.stating(batch_size=size), model)
    assert {name: (fact.value, fact.provenance) for name, fact in found.facts.items()} == {"batch_size": (2, "assumed")}
    words = (
        "as in 2 epochs of steps of 2 on average, where the facts say 2 epochs of steps of 4; what it shows is used."
    )
    assert words in found.messages[0]


@pytest.mark.parametrize("size", [2, 3])
def test_a_size_that_nobody_told_stays_in_doubt_where_another_makes_as_many_steps(
    model: nn.Module, private: CapturedUpdate, size: int
) -> None:
    found = check_local_steps(private.stating(batch_size=assumed(size)), model)
    assert (found.facts, found.contradictions, found.messages) == ({}, {}, ())


@pytest.mark.parametrize("size", [2, 3, None])
def test_more_visits_of_batch_statistics_than_told_replace_the_epochs(
    model: nn.Module, private: CapturedUpdate, size: int | None
) -> None:
    """The derivatives of each batch add up to zero, and their rank counts the batches: two of each epoch."""
    found = check_local_steps(private.stating(epochs=told(1), batch_size=told(size)), model)
    facts = {name: (fact.value, fact.provenance) for name, fact in found.facts.items()}
    expected = {"epochs": (2, "assumed")} | ({} if size else {"batch_size": (2, "assumed")})
    assert facts == expected
    assert "At least 8 visits of images show in the weight delta" in found.messages[0]


def test_weight_decay_is_left_alone(model: nn.Module) -> None:
    decayed = sent(model, replace(TRUE, weight_decay=0.01))
    assert check_local_steps(decayed.stating(epochs=told(1)), model).messages == ()

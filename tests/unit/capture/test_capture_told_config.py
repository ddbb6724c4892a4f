"""What the user tells of a client: every key by name, its value, what is refused, and that it wins over the file."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from gradinversion.capture import (
    IMAGENET,
    BatchNormMode,
    CapturedUpdate,
    Defence,
    LocalFacts,
    LocalTraining,
    Normalisation,
    Penalty,
    Provenance,
    Reduction,
    Sampling,
    UpdateError,
    assumed,
    capture_gradient,
    capture_weight_delta,
    read,
    told,
)
from gradinversion.capture.stated import state_facts
from gradinversion.capture.told_config import ToldConfig, apply_told
from gradinversion.refusal import ConfigError
from torch import nn

VALUES: dict[str, tuple[tuple[str, Any], ...]] = {
    "image_count": (("6", 6),),
    "normalisation": (
        ("0.5,0.4,0.3/0.1,0.2,0.3", Normalisation((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))),
        ("0.5/0.25", Normalisation((0.5,) * 3, (0.25,) * 3)),
        ("imagenet", IMAGENET),
        ("none", Normalisation((0.0,) * 3, (1.0,) * 3)),
    ),
    "batch_norm": (("train_private", BatchNormMode.TRAIN_PRIVATE), ("eval", BatchNormMode.EVAL)),
    "dropout": (("true", True), ("False", False)),
    "loss": (("mse_loss", "mse_loss"),),
    "reduction": (("sum", Reduction.SUM), ("mean", Reduction.MEAN)),
    "loss_scale": (("0.25", 0.25), ("unknown", None)),
    "label_smoothing": (("0.1", 0.1), ("0", 0.0)),
    "penalty": (
        ("l2:5e-4+l1:1e-5", Penalty(5e-4, 1e-5)),
        ("l1:1e-5", Penalty(l1=1e-5)),
        ("l2:5e-4", Penalty(5e-4)),
        ("none", Penalty()),
    ),
    "learning_rate": (("0.1", 0.1),),
    "epochs": (("3", 3),),
    "batch_size": (("2", 2), ("all", None), ("4", None), ("32", None)),
    "momentum": (("0.9", 0.9),),
    "weight_decay": (("5e-4", 5e-4),),
    "shuffled": (("true", True),),
    "defences": (
        ("clip:1+noise:0.1", (Defence("clip", 1.0), Defence("noise", 0.1))),
        ("dp_sgd:1.1", (Defence("dp_sgd", 1.1),)),
        ("none", ()),
    ),
    "sampling": (("poisson:8.5", Sampling(True, 8.5)), ("fixed", Sampling())),
    "clients": (("2", 2),),
}


@pytest.fixture(scope="module")
def delta() -> CapturedUpdate:
    model = network()
    after = {name: p + 0.01 for name, p in model.state_dict().items()}
    return capture_weight_delta(model, after, image_count=4, image_shape=(3, 6, 6), local=LocalFacts())


@pytest.fixture(scope="module")
def gradient() -> CapturedUpdate:
    return capture_gradient(network(), torch.rand(4, 3, 6, 6), torch.arange(4))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 5))


def test_there_is_one_key_for_each_fact_named_as_its_remedy(delta: CapturedUpdate) -> None:
    keys = {one.name for one in fields(ToldConfig)}
    assert keys == {name for name, _ in delta.facts.items()} == VALUES.keys()
    for fact in state_facts(delta.facts, keys, {}):
        name, _, example = fact.remedy.removeprefix("told.").partition("=")
        assert name == fact.name
        assert name in ToldConfig(**{name: example}).facts()


@pytest.mark.parametrize(("name", "words", "value"), [(n, *one) for n, given in VALUES.items() for one in given])
def test_a_fact_that_is_told_stands_in_the_record(delta: CapturedUpdate, name: str, words: str, value: object) -> None:
    found = dict(apply_told(delta, ToldConfig(**{name: words})).facts.items())
    assert found[name] == told(value, "the user")
    assert type(found[name].value) is type(value)
    others = {other: fact for other, fact in delta.facts.items() if other != name}
    assert {other: fact for other, fact in found.items() if other != name} == others


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *(("image_count", words) for words in ("0", "-1", "1.5", "many", "70000")),
        *(("normalisation", words) for words in ("0.5", "0.5,0.5/1", "a/b", "0/0", "nan/1", "0/inf", "1/2/3", "0/-1")),
        *(("batch_norm", words) for words in ("train", "EVAL")),
        *(("dropout", words) for words in ("0.5", "yes", "1")),
        *(("loss", words) for words in ("cross entropy", "foreign: x", "1", "a" * 100)),
        *(("reduction", words) for words in ("none", "average")),
        *(("loss_scale", words) for words in ("0", "-1", "inf", "nan", "big")),
        *(("label_smoothing", words) for words in ("1", "-0.1", "nan")),
        *(("penalty", words) for words in ("5e-4", "l2", "l2:-1", "l3:1", "l2:1+l2:2", "l2:inf", "none+l2:1")),
        *(("learning_rate", words) for words in ("0", "-1", "inf", "fast")),
        *(("epochs", words) for words in ("0", "1.5")),
        *(("batch_size", words) for words in ("0", "none")),
        *(("momentum", words) for words in ("1", "-0.1")),
        *(("weight_decay", words) for words in ("-1", "inf")),
        *(("shuffled", words) for words in ("maybe", "0")),
        *(("defences", words) for words in ("fog:1", "clip", "clip:0", "none+clip:1", "clip:1+clip:2", "noise:x")),
        *(("sampling", words) for words in ("poisson", "poisson:0", "poisson:inf", "random", "fixed:3")),
        *(("clients", words) for words in ("0", "2.5")),
    ],
)
def test_what_cannot_be_such_a_fact_is_one_line_with_its_key(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ToldConfig(**{name: words})
    assert str(caught.value).startswith(f"told.{name}={words[:80]}: ")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_all_that_cannot_be_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ToldConfig(epochs="0", momentum="2", clients="3", loss_scale="x")
    assert [line.partition("=")[0] for line in str(caught.value).splitlines()] == [
        *("told.loss_scale", "told.epochs", "told.momentum")
    ]


def test_nothing_told_leaves_the_update_as_it_is(delta: CapturedUpdate) -> None:
    assert ToldConfig().given == ()
    assert apply_told(delta, ToldConfig()) is delta


def test_local_steps_of_a_gradient_are_refused(gradient: CapturedUpdate) -> None:
    with pytest.raises(UpdateError, match=r"told\.epochs=2, told\.momentum=0\.9: the update is a gradient"):
        apply_told(gradient, ToldConfig(epochs="2", momentum="0.9", clients="2"))
    assert apply_told(gradient, ToldConfig(clients="2")).facts.clients == told(2, "the user")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"batch_norm": "train_shared"}, "holds no batch-norm buffers"),
        ({"normalisation": "0.5,0.5/1,1"}, "is for 2 channels and the images have 3"),
        ({"image_count": "1", "epochs": "20000"}, "at most 10,000 can be retraced"),
    ],
)
def test_what_does_not_go_with_the_update_names_what_was_told(
    delta: CapturedUpdate, words: dict[str, str], sentence: str
) -> None:
    with pytest.raises(UpdateError, match="what is told does not go with the update") as caught:
        apply_told(delta, ToldConfig(**words))
    assert sentence in str(caught.value)
    assert all(f"told.{name}={value}" in str(caught.value) for name, value in words.items())


def test_images_of_one_channel_are_told_by_one_number() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    update = capture_gradient(model, torch.rand(2, 1, 6, 6), torch.arange(2), normalisation=((0.1,), (0.3,)))
    for words, value in (("0.5/0.25", ((0.5,), (0.25,))), ("none", ((0.0,), (1.0,)))):
        assert apply_told(update, ToldConfig(normalisation=words)).normalisation == Normalisation(*value)


def test_a_rate_that_the_user_does_not_know_stays_to_be_estimated(delta: CapturedUpdate) -> None:
    known = delta.stating(learning_rate=told(0.1))
    found = apply_told(known, ToldConfig(learning_rate="unknown")).facts.local
    assert found is not None
    assert found.learning_rate == assumed(None, "the user does not know it")


def test_what_the_user_tells_wins_over_the_file(delta: CapturedUpdate) -> None:
    filed = delta.stating(momentum=told(0.5), epochs=read(2, "a counter"))
    found = apply_told(filed, ToldConfig(momentum="0.9", epochs="3", learning_rate="0.1"))
    assert found.local == LocalTraining(0.1, epochs=3, momentum=0.9)
    assert found.facts.local is not None
    assert found.facts.local.epochs.provenance is Provenance.TOLD

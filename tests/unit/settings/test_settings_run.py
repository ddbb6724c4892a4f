from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from gradinversion.agents import GradientLoss
from gradinversion.coordinator import AttackConfig, Mode, flatten
from gradinversion.refusal import ConfigError
from gradinversion.settings import help as config_help
from gradinversion.settings import usage
from gradinversion.settings.catalogue import catalogue
from gradinversion.settings.keys import convert, keys, wanted
from gradinversion.settings.run import (
    WITHOUT_EFFECT,
    RunConfig,
    command_words,
    config_yaml,
    differences,
    load_config,
    load_config_file,
    parse_config,
    to_plain,
)

TRAINED = ["client.batch_size=3", "client.image_size=8", "client.local_epochs=2", "client.learning_rate=0.05"]


def problems(*words: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(words)
    return caught.value.problems


def values_in(config: Any) -> list[Any]:
    found = []
    for entry in fields(config):
        value = getattr(config, entry.name)
        found += values_in(value) if is_dataclass(value) else [value]
    return found


def test_no_words_give_the_defaults_as_dataclasses() -> None:
    config = load_config([])
    assert config == RunConfig()
    assert isinstance(config, AttackConfig)
    plain = (bool, int, float, str, tuple, type(None))
    assert {type(value) for value in values_in(config) if not isinstance(value, plain)} == set()


@pytest.mark.parametrize(
    ("word", "path", "value"),
    [
        ("agents.count=8", "agents.count", 8),
        ("agents.gpus=0.25", "agents.gpus", 0.25),
        ("agents.learning_rate=1e-3", "agents.learning_rate", 1e-3),
        ("agents.gpus=1", "agents.gpus", 1.0),
        ("agents.box=False", "agents.box", False),
        ("resume=yes", "resume", True),
        ("coordinator.mode=async", "coordinator.mode", Mode.ASYNC),
        ("coordinator.mode=ASYNC", "coordinator.mode", Mode.ASYNC),
        ("objective.gradient_loss=cosine", "objective.gradient_loss", GradientLoss.COSINE),
        ("labels=0,1,2,2", "labels", "0,1,2,2"),
        ("labels=3", "labels", "3"),
        ("client.labels=0,0,1,1", "client.labels", "0,0,1,1"),
        ("client.images=1_2", "client.images", "1_2"),
        ("client.images=a=b", "client.images", "a=b"),
        ("out=${HOME}", "out", "${HOME}"),
        (r"out=a\${HOME}", "out", r"a\${HOME}"),
        ("out=1:30", "out", "1:30"),
        ("out= spaced ", "out", "spaced"),
        ("update=file.safetensors", "update", "file.safetensors"),
        ("update=none", "update", None),
        ("client.weights=", "client.weights", None),
        ("client.defence=none", "client.defence", "none"),
        ("audit.controls=constant_image,no_gradient", "audit.controls", ("constant_image", "no_gradient")),
        ("audit.controls=", "audit.controls", ()),
    ],
)
def test_a_word_sets_its_key_and_nothing_else(word: str, path: str, value: object) -> None:
    config = load_config([word])
    found: Any = config
    for name in path.split("."):
        found = getattr(found, name)
    assert (found, type(found)) == (value, type(value))
    untouched = load_config([])
    assert set(changed_keys(untouched, config)) <= {path}


def changed_keys(before: RunConfig, now: RunConfig) -> list[str]:
    old, new = dict(flatten(to_plain(before))), dict(flatten(to_plain(now)))
    return [name for name in old if old[name] != new[name]]


def test_the_last_word_for_a_key_counts() -> None:
    assert load_config(["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("agents.cuont=4", "agents.count"),
        ("iterations=100", "agents.iterations"),
        ("client.batchsize=4", "client.batch_size"),
        ("objectiv.l2_weight=0", "objective.l2_weight"),
        ("lables=auto", "labels"),
        ("--out=folder", "out"),
    ],
)
def test_a_typo_names_the_nearest_key(typo: str, meant: str) -> None:
    (problem,) = problems(typo)
    assert typo.split("=")[0] in problem
    assert f"did you mean {meant}?" in problem


def test_a_key_like_no_other_points_to_the_help() -> None:
    (problem,) = problems("zzz.qqq=1")
    assert problem == "zzz.qqq is not a key: --help lists every key."


def test_a_group_is_not_a_key() -> None:
    (problem,) = problems("coordinator=sync")
    assert "coordinator is a group of keys" in problem
    assert "coordinator.mode" in problem


@pytest.mark.parametrize(
    ("word", "allowed"),
    [
        ("agents.count=four", "a whole number"),
        ("agents.count=1.5", "a whole number"),
        ("agents.count=true", "a whole number"),
        ("agents.count=none", "a whole number"),
        ("agents.gpus=one", "a number or none"),
        ("resume=2", "true or false"),
        ("coordinator.mode=parallel", "one of sync, async"),
        ("objective.form=PAPERS", "one of paper, scale_free"),
        ("out=???", "text"),
    ],
)
def test_a_value_of_the_wrong_type_says_what_was_given_and_what_is_allowed(word: str, allowed: str) -> None:
    assert problems(word) == (f"{word}: give {allowed}.",)


def test_every_type_in_the_configuration_can_be_described() -> None:
    assert all(wanted(key.kind) for key in keys(RunConfig).values())
    assert wanted(tuple[str, ...]) == "text, several separated by commas"
    assert wanted(str | None) == "text or none"


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("agents.count=0", "agents.count=0"),
        ("agents.gpus=nan", "agents.gpus=nan"),
        ("agents.learning_rate=inf", "agents.learning_rate=inf"),
        ("objective.l2_weight=-1", "objective.l2_weight=-1"),
        ("registration.rounds=0", "registration"),
        ("client.bn=evil", "client.bn"),
        ("client.labels=0,1", "client.labels"),
        ("audit.controls=constant_image,magic", "audit.controls=magic"),
        ("labels=mininum", "labels=mininum"),
        ("labels=1,-2", "labels=1,-2"),
        ("seed=-1", "seed=-1"),
        ("out=", "out="),
    ],
)
def test_a_value_that_a_component_refuses_names_its_key(word: str, named: str) -> None:
    (problem,) = problems(word)
    assert named in problem


def test_all_problems_are_reported_together() -> None:
    found = problems(
        "preset=nothing", "agents.cuont=3", "oops", "seed=1.5", "agents.count=0", "registration.rounds=0", "labels=x"
    )
    text = "\n".join(found)
    for part in ("preset=nothing", "agents.cuont", "'oops'", "seed=1.5", "agents.count=0", "registration", "labels=x"):
        assert part in text
    assert len(found) == 7


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["told.batch_size=4"], "told.batch_size: a simulated client tells everything itself"),
        (["private.images=/x"], "private.images=/x: they belong to a captured update"),
        (["before=a.pt", *TRAINED], "before=a.pt: give after=FILE too"),
        (["before=a.pt", "after=b.pt", "update=c.safetensors", *TRAINED], "update=c.safetensors: give it, or before="),
        (["before=a.pt", "after=b.pt", *TRAINED, "client.local_epochs=0"], "client.local_epochs=0: two checkpoints"),
        (["client.batch_size=20"], "20"),
    ],
)  # fmt: skip
def test_a_component_that_is_refused_hides_no_problem_of_the_others(words: list[str], sentence: str) -> None:
    found = problems("agents.count=0", *words)
    assert len(found) == 2
    assert any(sentence in one for one in found)
    assert any("agents.count=0" in one for one in found)


def test_of_a_client_that_is_refused_what_was_given_is_said_all_the_same() -> None:
    found = problems(
        "before=a.pt", *TRAINED, "client.local_epochs=0", "client.mean=0.5", "told.batch_size=-1", "seed=x"
    )
    for part in ("give after=FILE too", "client.local_epochs=0: two", "client.mean", "told.batch_size", "seed=x"):
        assert sum(part in one for one in found) == 1, (part, found)


def test_of_a_value_that_cannot_be_read_its_default_is_not_said() -> None:
    (problem,) = problems("before=a.pt", "after=b.pt", *TRAINED, "client.local_epochs=many")
    assert problem.startswith("client.local_epochs=many: give")


def test_the_message_of_the_error_is_all_problems_one_a_line() -> None:
    with pytest.raises(ConfigError, match=re.escape("oops")) as caught:
        load_config(["oops", "agents.count=x"])
    assert str(caught.value).splitlines() == list(caught.value.problems)


@pytest.mark.parametrize("text", ["agents: [", "- 1\n- 2\n", "just words", "agents:\n  cuont: 3\n", "labels:\n"])
def test_a_file_that_is_no_configuration_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        load_config_file(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        load_config_file(tmp_path / "nowhere.yaml")


def test_plain_values_are_what_files_can_hold() -> None:
    plain = to_plain(load_config(["audit.controls=constant_image"]))
    assert plain["coordinator"]["mode"] == "sync"
    assert type(plain["coordinator"]["mode"]) is str
    assert plain["audit"]["controls"] == ["constant_image"]
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain


def test_differences_name_the_keys_with_both_values() -> None:
    before = load_config([])
    now = load_config(["agents.count=8", "objective.gradient_loss=cosine", "client.weights=w.pt"])
    assert differences(before, now) == [
        "objective.gradient_loss (relative_l2 before, cosine now)",
        "agents.count (4 before, 8 now)",
        "client.weights (none before, w.pt now)",
    ]
    assert differences(now, replace(now)) == []


def test_keys_without_effect_on_the_numbers_do_not_differ() -> None:
    words = ["out=elsewhere", "resume=true", "audit.controls=no_gradient", "audit.lpips_weights=x.pt"]
    assert differences(load_config([]), load_config(words)) == []
    assert keys(RunConfig).keys() >= WITHOUT_EFFECT


def test_the_help_shows_every_key_with_its_default_and_meaning() -> None:
    text = config_help.help_text()
    words = " ".join(text.split())
    for key in keys(RunConfig).values():
        assert re.search(rf"^  {re.escape(key.name)}=", text, re.MULTILINE), key.name
        assert " ".join(catalogue()[key.name].meaning.replace("`", "").split()) in words
    assert re.search(r"^  agents\.count=4 +Agents;", text, re.MULTILINE)
    assert re.search(r"^  coordinator\.mode=sync +", text, re.MULTILINE)


def test_the_help_shows_verbs_and_no_markup() -> None:
    text = config_help.help_text()
    assert all(re.search(rf"^  {verb} +\w", text, re.MULTILINE) for verb in usage.VERBS)
    assert max(map(len, text.splitlines())) <= 120
    assert "``" not in text


@pytest.mark.parametrize(
    "key", [key for key in keys(RunConfig).values() if key.default != ()], ids=lambda key: key.name
)
def test_the_default_that_the_help_shows_can_be_given_as_a_word(key: Any) -> None:
    shown = re.search(rf"^  {re.escape(key.name)}=(\S*)", config_help.help_text(), re.MULTILINE)
    assert shown is not None
    found = convert(key.kind, shown[1])
    assert (tuple(found) if isinstance(found, list) else found) == key.default


def test_the_examples_of_the_help_load() -> None:
    for command, _ in usage.EXAMPLES:
        words = command.removeprefix("python run.py").split()
        verbs, settings = words[:1], words[1:]
        if not verbs or verbs[0] not in usage.VERBS:
            settings = words
        assert load_config(settings) is not None


@pytest.mark.parametrize("word", ["private=folder", "private.images=folder"])
def test_the_owners_images_go_with_an_update(word: str) -> None:
    config = load_config(["update=file.safetensors", word, "private.labels=0,1,2"])
    assert (config.private.images, config.private.labels) == ("folder", "0,1,2")
    assert differences(load_config(["update=file.safetensors"]), config) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["private=folder"], "private.images=folder: they belong to a captured update; give update=FILE"),
        (["update=u.safetensors", "private.labels=0,1"], "private.labels=0,1 are labels of no images"),
        (["update=u.safetensors", "private.image=folder"], "did you mean private.images"),
        (["client.batch_size=12"], "12 images and 10 classes"),
        (["client.image_size=24x40"], "client.image_size=24x40: give a whole number"),
    ],
)
def test_private_images_of_nothing_are_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config(words)


def test_a_captured_update_of_few_classes_needs_no_labels_of_a_simulated_client() -> None:
    assert load_config(["update=u.safetensors", "client.classes=2"]).client.classes == 2


def test_the_shape_and_normalisation_of_the_client_are_written_and_read_back() -> None:
    words = [
        "client.channels=1",
        "client.image_size=24",
        "client.image_width=40",
        "client.mean=0.13",
        "client.std=0.31",
    ]
    config = load_config(words)
    assert config.client.image_shape == (1, 24, 40)
    assert config.client.normalisation.std == (0.31,)
    assert load_config(command_words(config)) == config
    assert parse_config(config_yaml(config).encode(), "file") == config


def test_facts_are_told_in_words_of_which_none_is_one() -> None:
    """``told.defences=none`` says that there were none; what is not told is empty."""
    words = ["update=u.safetensors", "told.defences=none", "told.penalty=l2:5e-4+l1:1e-5", "told.batch_size=all"]
    config = load_config(words)
    assert (config.told.defences, config.told.penalty, config.told.batch_size) == ("none", "l2:5e-4+l1:1e-5", "all")
    assert config.told.given == ("penalty", "batch_size", "defences")
    assert load_config(command_words(config)) == config
    assert problems("told.momentum=0.9") == (
        "told.momentum: a simulated client tells everything itself; give update=FILE, or leave it out.",
    )
    assert len(problems("update=u.safetensors", "told.momentum=9", "told.epochs=0")) == 2
    assert differences(config, load_config([*words, "told.momentum=0.9"])) == ["told.momentum ( before, 0.9 now)"]

"""What the words of a command line mean before anything is loaded."""

from __future__ import annotations

import pytest
from gradinversion.command.words import of_another_verb, split_verb
from gradinversion.refusal import ConfigError


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        split_verb(words)
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "verb", "settings"),
    [
        ([], "attack", []),
        (["out=x"], "attack", ["out=x"]),
        (["audit", "out=x"], "audit", ["out=x"]),
        (["report"], "report", []),
        (["out=", "resume=true"], "attack", ["out=", "resume=true"]),
        (["client.mean==1"], "attack", ["client.mean==1"]),
        (["seed=-3"], "attack", ["seed=-3"]),
    ],
)
def test_the_verb_stands_first_and_is_an_attack_where_there_is_none(
    words: list[str], verb: str, settings: list[str]
) -> None:
    assert split_verb(words) == (verb, settings)


@pytest.mark.parametrize(
    "words",
    [
        ["client.batch_size", "=", "8"],
        ["client.batch_size", "=8"],
        ["client.batch_size=", "8"],
        ["--client.batch_size", "=", "8"],
        ["audit", "client.batch_size", "=", "8"],
    ],
)
def test_spaces_around_an_equals_sign_have_their_hint(words: list[str]) -> None:
    assert "spaces around its equals sign: write client.batch_size=8." in refusal(*words)


def test_all_slips_are_told_together() -> None:
    text = refusal("client.batch_size", "=", "8", "agents.count=", "2", "--fast")
    assert text.count("spaces around") == 2
    assert "--fast is not an option: settings are plain words, fast=…" in text


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--seed", "3"], "seed=3"),
        (["--seed=3"], "seed=3"),
        (["-seed=3"], "seed=3"),
        (["--dry-run"], "dry_run=…"),
        (["--image-size", "64"], "client.image_size=64"),
        (["--batch-size=8"], "client.batch_size=8 or told.batch_size=8"),
    ],
)
def test_options_of_other_programs_are_told_as_settings(words: list[str], meant: str) -> None:
    assert f"settings are plain words, {meant}" in refusal(*words)


@pytest.mark.parametrize("word", ["sweep.batch_sizes=1,8", "budget=10m"])
def test_a_grid_without_its_verb_is_refused(word: str) -> None:
    assert of_another_verb("attack", ["seed=3", word]) == [
        f"{word} is for a grid: write audit {word}, or leave it out."
    ]
    assert of_another_verb("capture", [word])
    assert of_another_verb("audit", [word]) == of_another_verb("attack", ["seed=3"]) == []


def test_a_verb_that_does_not_exist_is_answered_with_the_nearest() -> None:
    assert "did you mean attack?" in refusal("atack")
    assert "give one of attack, audit" in refusal("xyzzy")


def test_an_update_in_place_of_a_verb_is_understood() -> None:
    assert "give update=round7.safetensors" in refusal("round7.safetensors")

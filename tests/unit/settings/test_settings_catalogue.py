"""The keys as their sources tell them, held against the dataclasses."""

from __future__ import annotations

import inspect

import pytest
from gradinversion.refusal import ConfigError
from gradinversion.settings.catalogue import catalogue
from gradinversion.settings.keys import format_value, keys, wanted
from gradinversion.settings.run import RunConfig, load_config
from gradinversion.settings.words import slips


def test_the_sources_tell_the_same_keys_in_the_same_order_with_the_same_defaults() -> None:
    read, known = catalogue(), keys(RunConfig)
    assert list(read) == list(known)
    for name, key in known.items():
        entry = read[name]
        assert (entry.default, format_value(entry.default)) == (key.default, format_value(key.default)), name
        assert wanted(entry.kind) == wanted(key.kind), name
        assert entry.summary == inspect.getdoc(key.owner), name
        assert len(entry.meaning) > 10, name


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("agents.cuont=3", "agents.cuont is not a key: did you mean agents.count?"),
        ("agents=3", "agents is a group of keys"),
        ("agents.count=four", "agents.count=four: give a whole number."),
        ("agents.gpus=one", "agents.gpus=one: give a number or none."),
        ("resume=maybe", "resume=maybe: give true or false."),
        ("coordinator.mode=parallel", "coordinator.mode=parallel: give one of sync, async."),
        ("sweep.batch_sizes=1,two", "sweep.batch_sizes=1,two: give a whole number, several separated by commas."),
        ("oops", "'oops' is not a setting"),
        ("=3", "'=3' is not a setting"),
    ],
)
def test_slips_are_told_in_the_words_of_the_whole_check(word: str, problem: str) -> None:
    (found,) = slips([word, "seed=3", "out=somewhere", "private=FOLDER"])
    assert found.startswith(problem)
    with pytest.raises(ConfigError) as refused:
        load_config([word])
    assert found in refused.value.problems


def test_a_word_that_a_later_one_overrides_is_no_slip() -> None:
    words = ["fail_on=leaks", "preset=nope", "agents.count=x", "agents.count=3", "preset=gradinversion", "fail_on=leak"]
    assert slips(words) == []
    assert load_config(words).fail_on == "leak"
    assert len(slips([*words, "fail_on=leaks"])) == 1


def test_all_slips_are_told_together_and_right_words_are_none() -> None:
    assert len(slips(["oops", "agents.cuont=3", "agents.count=x"])) == 3
    assert slips(["labels=0,1", "agents.gpus=none", "objective.form=PAPER", "audit.controls=", "seed=3"]) == []

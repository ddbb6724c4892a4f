from __future__ import annotations

import re
from typing import Any

import pytest
from gradinversion import config_help
from gradinversion.config import RunConfig, load_config
from gradinversion.config_keys import convert, keys


def test_every_key_has_a_meaning() -> None:
    assert [key.name for key in keys(RunConfig).values() if not config_help.meaning(key)] == []


def test_the_help_shows_every_key_with_its_default_and_meaning() -> None:
    text = config_help.help_text()
    words = " ".join(text.split())
    for key in keys(RunConfig).values():
        assert re.search(rf"^  {re.escape(key.name)}=", text, re.MULTILINE), key.name
        assert config_help.meaning(key) in words
    assert re.search(r"^  agents\.count=4 +Agents;", text, re.MULTILINE)
    assert re.search(r"^  coordinator\.mode=sync +", text, re.MULTILINE)


def test_the_help_shows_presets_verbs_and_no_markup() -> None:
    text = config_help.help_text()
    assert all(re.search(rf"^  preset={name} +\w", text, re.MULTILINE) for name in PRESETS)
    assert all(re.search(rf"^  {verb} +\w", text, re.MULTILINE) for verb in config_help.VERBS)
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
    for command, _ in config_help.EXAMPLES:
        words = command.removeprefix("python run.py").split()
        verbs, settings = words[:1], words[1:]
        if not verbs or verbs[0] not in config_help.VERBS:
            settings = words
        assert load_config(settings) is not None


def test_the_help_lists_the_verbs_that_there_are() -> None:
    from gradinversion import run

    assert tuple(config_help.VERBS) == tuple(run.VERBS)

"""The exit status of a verdict."""

from __future__ import annotations

import pytest
from gradinversion.audit.verdict import Leak
from gradinversion.command.verbs import exit_status
from gradinversion.refusal import ConfigError
from gradinversion.settings.run import differences, load_config

FAILING = {
    "never": set[Leak](),
    "leak": {Leak.LEAKED},
    "weak": {Leak.LEAKED, Leak.WEAK},
    "unknown": {Leak.LEAKED, Leak.WEAK, Leak.UNKNOWN, Leak.FAILED},
}


@pytest.mark.parametrize("word", FAILING)
@pytest.mark.parametrize("leak", Leak)
def test_a_verdict_that_is_grave_enough_ends_with_four(word: str, leak: Leak) -> None:
    assert exit_status(leak, load_config([f"fail_on={word}"])) == (4 if leak in FAILING[word] else 0)


def test_it_changes_no_attack_and_other_words_are_refused() -> None:
    assert differences(load_config([]), load_config(["fail_on=leak", "audit.redact=true"])) == []
    with pytest.raises(ConfigError, match="fail_on=always: give one of never, leak, weak, unknown"):
        load_config(["fail_on=always"])

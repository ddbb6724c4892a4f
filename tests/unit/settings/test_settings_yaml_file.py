"""Settings of strangers as yaml: one sentence, at once, whatever it is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from gradinversion.refusal import ConfigError
from gradinversion.settings.run import config_yaml, load_config, load_config_file, parse_config

LAUGHS = "a: &a [lol, lol]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

HOSTILE = {
    "laughs of a list": LAUGHS,
    "laughs of a mapping": "a: &a {x: 1}\nb: {<<: *a, y: *a}\n",
    "an alias of itself": "a: &a [*a]\n",
    "sixty thousand keys": "".join(f"key{index}: 1\n" for index in range(20_000)),
    "a thousand keys": "".join(f"agents.cuont{index}: 1\n" for index in range(900)),
    "a long list": "sweep: {batch_sizes: [" + "1," * 100_000 + "]}\n",
    "deep nesting": "[" * 50_000,
    "deep mappings": "{a: " * 50_000,
    "a megabyte": "a" * 2**20,
    "a megabyte of blanks": " " * 2**20,
    "a list": "- 1\n- 2\n",
    "a text": "hello",
    "numbers as keys": "1: 2\n",
    "nothing as a key": "? \n: 2\n",
    "a list as a key": "? [a]\n: 2\n",
    "an object": "seed: !!python/object/apply:os.system [ls]\n",
    "bytes": "out: !!binary aGVsbG8=\n",
    "a set": "agents: !!set {a, b}\n",
    "a date": "seed: 2001-01-01\n",
    "no date": "seed: 2001-99-99\n",
    "an empty number": "seed: !!int ''\n",
    "no truth": "resume: !!bool maybe\n",
    "a huge number": "seed: " + "9" * 6_000 + "\n",
    "a huge number in hexadecimal": "seed: 0x" + "f" * 6_000 + "\n",
    "a huge number to the base of 60": "seed: 1" + ":1" * 100_000 + "\n",
    "a fraction to the base of 60": "seed: 1" + ":1" * 100_000 + ".5\n",
    "an infinite number": "seed: .inf\n",
    "a list of lists": "seed: [[1], [2]]\n",
    "a group as a value": "agents: 3\n",
    "a value as a group": "seed: {a: 1}\n",
    "interpolation": "seed: ${oc.env:HOME}\n",
    "a null byte": 'seed: "\\0"\n',
    "control characters": "seed: \x1b[2J\n",
    "two documents": "seed: 1\n---\nseed: 2\n",
    "no utf-8": "\udcff",
    "the same anchor": "a: &a 1\nb: &a 2\nc: *a\n",
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_settings_are_a_sentence_at_once(name: str) -> None:
    began = time.process_time()
    with pytest.raises(ConfigError) as refused:
        parse_config(HOSTILE[name].encode("utf-8", "surrogateescape"), "config.yaml")
    assert 0 < len(str(refused.value)) < 10_010
    assert str(refused.value).replace("\n", "").isprintable()
    assert time.process_time() - began < 5


def test_what_a_run_writes_is_read(tmp_path: Path) -> None:
    config = load_config(["sweep.batch_sizes=1,2,4", "out=${HOME}/x", "client.model=my.module:build", "budget=90s"])
    (tmp_path / "config.yaml").write_text(config_yaml(config), encoding="utf-8")
    assert load_config_file(tmp_path / "config.yaml") == config


def test_a_device_is_no_file_of_settings() -> None:
    with pytest.raises(ConfigError, match="/dev/zero cannot be read as a configuration"):
        load_config_file(Path("/dev/zero"))


def test_of_many_unknown_keys_the_first_are_named_and_the_others_counted() -> None:
    with pytest.raises(ConfigError) as refused:
        load_config([f"cuont{index}=1" for index in range(300)])
    assert len(refused.value.problems) == 21
    assert "280 more keys are not known." in refused.value.problems

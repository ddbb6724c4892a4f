"""Code that a folder's settings name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gradinversion.refusal import ConfigError
from gradinversion.settings.folder import open_folder, settings_of_the_run
from gradinversion.settings.own_code import own_code, require_code_of_preset
from gradinversion.settings.run import config_yaml, load_config

FOREIGN = "client.model=http.server:test"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "gradinversion" / "own-code"


def foreign_folder(tmp_path: Path, *words: str) -> str:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(config_yaml(load_config([*(words or (FOREIGN,))])))
    return f"out={tmp_path}/run"


@pytest.mark.parametrize("generator", ["os:abort", "pdb:run"])
def test_all_code_is_found_and_models_of_timm_are_none(generator: str) -> None:
    words = ["client.model=http.server:test", f"agents.generator={generator}", "objective.group_weight=0"]
    try:
        config = load_config(words)
    except ConfigError:
        pytest.skip("these settings do not go together")
    assert own_code(config) == {"client.model": "http.server:test", "agents.generator": generator}
    assert own_code(load_config(["client.model=timm:resnet10t"])) == {}
    assert own_code(load_config([])) == {}


def test_code_of_a_strangers_folder_is_refused_with_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"names code that would run here.*name it in the command too, client\.model="
    ):
        settings_of_the_run(load_config([foreign_folder(tmp_path)]))


def test_code_that_the_command_names_too_is_run(tmp_path: Path) -> None:
    out = foreign_folder(tmp_path)
    assert settings_of_the_run(load_config([out, FOREIGN])).client.model == "http.server:test"
    with pytest.raises(ConfigError, match="names code"):
        settings_of_the_run(load_config([out, "client.model=os:abort"]))


def test_code_with_which_the_user_began_the_run_is_run_in_that_folder_alone(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"out={tmp_path}/mine"
    open_folder(load_config([out, FOREIGN]))
    assert settings_of_the_run(load_config([out])).client.model == "http.server:test"
    (mark,) = state.iterdir()
    assert os.stat(mark).st_mode & 0o777 == 0o600
    assert os.stat(state).st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="names code"):
        settings_of_the_run(load_config([foreign_folder(tmp_path)]))
    # The settings were exchanged since.
    (tmp_path / "mine" / "config.yaml").write_text(config_yaml(load_config(["client.model=os:abort"])))
    with pytest.raises(ConfigError, match="names code"):
        settings_of_the_run(load_config([out]))
    # Another module of that name may lie in another working folder.
    (tmp_path / "mine" / "config.yaml").write_text(config_yaml(load_config([FOREIGN])))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="names code"):
        settings_of_the_run(load_config([out]))


def test_a_mark_that_others_could_have_made_counts_for_nothing(tmp_path: Path, state: Path) -> None:
    out = f"out={tmp_path}/mine"
    open_folder(load_config([out, FOREIGN]))
    state.chmod(0o777)
    with pytest.raises(ConfigError, match="names code"):
        settings_of_the_run(load_config([out]))
    state.chmod(0o700)
    (mark,) = state.iterdir()
    mark.unlink()
    mark.symlink_to("/etc/hostname")
    with pytest.raises(ConfigError, match="names code"):
        settings_of_the_run(load_config([out]))


def test_a_run_begins_also_where_nothing_can_be_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    out = f"out={tmp_path}/mine"
    open_folder(load_config([out, FOREIGN]))
    with pytest.raises(ConfigError, match="names code"):
        settings_of_the_run(load_config([out]))


def test_the_sentence_shows_nothing_that_acts(tmp_path: Path) -> None:
    out = foreign_folder(tmp_path, "client.model=a:\u202e\x1b[2J b")
    with pytest.raises(ConfigError) as refused:
        settings_of_the_run(load_config([out]))
    assert str(refused.value).isprintable()
    assert "\\x1b[2J" in str(refused.value)


def test_code_of_a_preset_file_is_refused_unless_the_command_names_it_too(tmp_path: Path) -> None:
    preset = tmp_path / "theirs.yaml"
    preset.write_text("client:\n  model: http.server:test\n")
    words = [f"preset={preset}"]
    with pytest.raises(ConfigError, match=r"names code that would run here.* too, client\.model=http\.server:test"):
        require_code_of_preset(load_config(words), words)
    require_code_of_preset(load_config([*words, FOREIGN]), [*words, FOREIGN])
    require_code_of_preset(load_config([FOREIGN]), [FOREIGN])

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gradinversion.audit.config import CONTROLS
from gradinversion.refusal import ConfigError
from gradinversion.settings.run import RunConfig, command_words, differences, load_config, with_settings
from gradinversion.sweep.grid import make_grid
from gradinversion.sweep.kinds import Kind

Settings = Any


def test_a_cell_for_every_combination_each_in_a_folder_of_its_own(settings: Settings, tmp_path: Path) -> None:
    grid = make_grid(settings("sweep.bn=eval,train_private", "sweep.states=untrained,a/net.pt,b/net.pt"))
    assert len(grid.cells) == 2 * 3 * 2 * 3
    configs = [cell.config for cell in grid.cells if cell.config is not None]
    assert len({config.out for config in configs}) == len(grid.cells)
    assert all(Path(config.out).parent == tmp_path / "out" / "cells" for config in configs)
    assert len({str(config.client) for config in configs}) == len(grid.cells)
    assert {config.client.weights for config in configs} == {None, "a/net.pt", "b/net.pt"}


def test_the_cells_nearest_to_the_users_settings_come_first(settings: Settings) -> None:
    grid = make_grid(settings("client.batch_size=8", "client.defence=noise", "client.defence_strength=0.1"))
    first = grid.cells[0].config
    assert first is not None
    assert (first.client.batch_size, first.client.defence, first.client.defence_strength) == (8, "noise", 0.1)
    changes = [len(grid.changes(cell.levels)) for cell in grid.cells]
    assert changes == sorted(changes)
    assert changes[0] == 0


def test_settings_outside_the_grid_begin_at_its_first_levels(settings: Settings) -> None:
    grid = make_grid(settings("client.batch_size=3"))
    assert grid.cells[0].config is not None
    assert grid.cells[0].config.client.batch_size == 4


def test_all_controls_are_on_and_every_other_key_holds_in_all_cells(settings: Settings) -> None:
    for cell in make_grid(settings("agents.count=7", "seed=5", "budget=10m")).cells:
        assert cell.config is not None
        assert cell.config.audit.controls == CONTROLS
        assert cell.config.audit.pool == "photos"
        assert (cell.config.agents.count, cell.config.seed, cell.config.budget) == (7, 5, None)


def test_a_pool_of_the_users_own_stays(settings: Settings) -> None:
    config = make_grid(settings("audit.pool=mine")).cells[0].config
    assert config is not None
    assert config.audit.pool == "mine"


def test_settings_that_do_not_go_together_are_a_bad_cell_and_no_more(settings: Settings) -> None:
    grid = make_grid(settings("sweep.batch_sizes=4,16", "sweep.defences=none,nosie:1,prune:7"))
    bad = {cell.title: cell.problem for cell in grid.cells if cell.config is None}
    assert len(bad) == 5
    assert "16 images and 10 classes" in next(text for title, text in bad.items() if title.startswith("batch 16, no "))
    assert any("nosie" in text for text in bad.values())
    assert any("prune" in text for text in bad.values())


def test_a_grid_without_one_good_cell_is_refused_with_every_reason_once(settings: Settings) -> None:
    with pytest.raises(ConfigError) as refused:
        make_grid(settings("sweep.batch_sizes=16,17", "sweep.defences=none,noise:1"))
    assert len(refused.value.problems) == 2


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("sweep.defences=noise:much", "name:number"),
        ("sweep.defences=noise:1+strength", "use one of none, noise"),
        ("sweep.defences=noise:1+clip:much", "name:number"),
        ("sweep.defences=client.clients=2+noise:1", "begin with a defence"),
        ("sweep.defences=noise:1+client.nothing=1", "key=value"),
        ("sweep.defences=none,noise:1+agents.iterations=5", "no setting by which a client defends itself"),
        ("sweep.defences=none,none+client.images=elsewhere", "no setting by which a client defends itself"),
        ("sweep.axes=32,64", "begin with a key"),
        ("sweep.axes=out:a,b", "cannot be varied"),
        ("sweep.axes=sweep.bn:eval", "cannot be varied"),
        ("sweep.axes=client.batch_size:1,2", "on two axes"),
        ("update=round7.safetensors", "makes its own updates"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(settings: Settings, word: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        make_grid(settings(word))


def test_too_many_cells_are_refused(settings: Settings) -> None:
    numbers = ",".join(map(str, range(1, 400)))
    with pytest.raises(ConfigError, match="at most"):
        make_grid(settings(f"sweep.axes=seed:{numbers}"))


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("sweep.batch_sizes=", "sweep.batch_sizes"),
        ("sweep.side_by_side=-1", "sweep.side_by_side"),
        ("sweep.train_steps=0", "sweep.train_steps"),
        ("budget=soon", "budget=soon"),
        ("budget=0m", "budget=0m"),
        ("budget=10", "budget=10"),
    ],
)
def test_bad_values_are_refused_with_the_configuration(word: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        load_config([word])


@pytest.mark.parametrize(("word", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_a_budget_in_seconds(word: str, seconds: float) -> None:
    assert load_config([f"budget={word}"]).budget_seconds == seconds


def test_further_keys_are_axes_too(settings: Settings) -> None:
    grid = make_grid(settings("sweep.axes=client.defence_clip:1,2,client.model:convnet,own.module:net"))
    assert len(grid.cells) == 6 * 4
    other = [axis for axis in grid.axes if axis.kind is Kind.OTHER]
    assert [axis.title for axis in other] == ["client.defence_clip", "client.model"]
    models = {cell.config.client.model for cell in grid.cells if cell.config is not None}
    assert models == {"convnet", "own.module:net"}


def test_a_defence_may_set_further_keys(settings: Settings) -> None:
    grid = make_grid(settings("sweep.batch_sizes=4", "sweep.defences=none,noise:1+client.bn=eval+client.momentum=0"))
    assert grid.cells[1].title == "batch 4, noise 1 client.bn=eval client.momentum=0, eval BN, untrained"
    grid = make_grid(settings("sweep.batch_sizes=4", "sweep.defences=none,noise:1+client.clients=2+client.dp_steps=9"))
    configs = [cell.config for cell in grid.cells if cell.config is not None]
    assert [config.client.image_count for config in configs] == [4, 8]


def test_combined_defences_are_levels_and_the_users_own_is_found(settings: Settings) -> None:
    defences = "sweep.defences=none,clip:0.50+noise:0.1,noise:1,prune:0.9+quantise:4+client.clients=2"
    grid = make_grid(settings("sweep.batch_sizes=4", defences, "client.defence=clip:0.5+noise:0.1"))
    own = grid.cells[0]
    assert own.config is not None
    assert (own.title, grid.changes(own.levels)) == ("batch 4, clip 0.50 + noise 0.1, eval BN, untrained", [])
    assert own.name == "batch-4_clip-0.50-noise-0.1_eval-BN_untrained"
    assert [(one.name, one.strength) for one in own.config.client.defences] == [("clip", 0.5), ("noise", 0.1)]
    assert load_config(command_words(own.config)) == own.config
    last = grid.cells[-1].config
    assert last is not None
    assert (last.client.defence, last.client.clients) == ("prune:0.9+quantise:4", 2)
    # The strength of a single one may stand in its name.
    grid = make_grid(settings("client.defence=noise:1"))
    assert grid.cells[0].title.startswith("batch 4, noise 1,")


def test_combined_defences_that_make_no_sense_are_bad_cells(settings: Settings) -> None:
    defences = "none,clip:1+noise,noise:1+noise:2,prune:0.9+dp_sgd:1,dp_sgd:1+soteria:0.1,none+clip:1,clip:1+fog:2"
    grid = make_grid(settings("sweep.batch_sizes=4", f"sweep.defences={defences}"))
    problems = [cell.problem for cell in grid.cells]
    parts = ("", "name:number", "twice", "put it first", "keep one", "leave 'none' out", "use one of")
    assert all(part in problem for part, problem in zip(parts, problems, strict=True))
    assert [cell.config is None for cell in grid.cells] == [False] + [True] * 6


def test_files_are_found_from_any_working_folder(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pt").touch()
    (tmp_path / "photos").mkdir()
    words = ("sweep.states=net.pt,elsewhere.pt", "sweep.batch_sizes=4", "sweep.defences=none", "audit.pool=photos")
    configs = [cell.config for cell in make_grid(settings(*words)).cells if cell.config is not None]
    assert {config.client.weights for config in configs} == {str(tmp_path / "net.pt"), "elsewhere.pt"}
    # The word for the images that are always there, not a folder.
    assert {(config.client.images, config.audit.pool) for config in configs} == {("photos", "photos")}


def test_a_level_that_is_given_twice_is_one(settings: Settings) -> None:
    assert len(make_grid(settings("sweep.batch_sizes=4,4,8")).cells) == 6


def test_the_words_of_a_cell_give_it_again(settings: Settings) -> None:
    config = make_grid(settings("preset=dlg", "client.images=my photos${x}")).cells[-1].config
    assert config is not None
    assert load_config(command_words(config)) == config


def test_keys_of_the_sweep_do_not_make_another_attack() -> None:
    changed = load_config(["sweep.batch_sizes=2", "budget=1h", "sweep.train_steps=5"])
    assert differences(RunConfig(), changed) == []


def test_settings_are_checked_as_a_whole() -> None:
    config = with_settings(RunConfig(), {"client.defence": "noise", "client.defence_strength": "0.5"})
    assert config.client.defence_strength == 0.5
    with pytest.raises(ConfigError, match="strength"):
        with_settings(RunConfig(), {"client.defence": "noise"})


def test_published_attacks_are_an_axis_whose_worst_level_counts(settings: Settings) -> None:
    words = ("client.batch_size=2", "sweep.batch_sizes=2", "sweep.defences=none", "sweep.bn=eval", "agents.count=3")
    grid = make_grid(settings(*words, "sweep.axes=preset:gradinversion,inverting_gradients"))
    found = {cell.config.preset: cell.config for cell in grid.cells if cell.config is not None}
    for name, config in found.items():
        wanted = load_config([f"preset={name}", "client.batch_size=2", "agents.count=3"])
        assert differences(wanted, config) == []
    assert found.keys() == {"gradinversion", "inverting_gradients"}
    (axis,) = [axis for axis in grid.axes if axis.title == "preset"]
    assert axis.kind is Kind.ATTACK
    assert axis.levels[axis.base].settings == {"preset": "gradinversion"}
    assert [grid.distance(cell.levels) for cell in grid.cells] == [(0, 0), (0, 1)]


def test_another_axis_wins_over_a_preset(settings: Settings) -> None:
    axes = "sweep.axes=agents.iterations:5,6,preset:inverting_gradients,dlg"
    grid = make_grid(settings("sweep.batch_sizes=1", "sweep.defences=none", "sweep.bn=eval", axes))
    tried = {(c.config.preset, c.config.agents.iterations) for c in grid.cells if c.config is not None}
    assert tried == {(name, steps) for name in ("inverting_gradients", "dlg") for steps in (5, 6)}


def test_a_preset_file_on_an_axis_names_no_code_by_itself(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("objective: {l2_weight: 0.5}\n")
    (tmp_path / "theirs.yaml").write_text("client: {model: 'os:abort'}\n")
    grid = make_grid(settings(f"sweep.axes=preset:gradinversion,{tmp_path}/mine.yaml"))
    assert {c.config.objective.l2_weight for c in grid.cells if c.config is not None} == {0.0, 0.5}
    theirs = f"sweep.axes=preset:{tmp_path}/theirs.yaml"
    with pytest.raises(ConfigError, match=r"names code that would run here: .* client\.model=os:abort"):
        make_grid(settings(theirs))
    assert make_grid(settings(theirs, "client.model=os:abort")).cells


def test_a_preset_file_on_an_axis_sets_nothing_that_cannot_be_varied(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("update: /tmp/some.safetensors\nexport: [wandb]\n")
    with pytest.raises(ConfigError, match="sets update: what cannot be varied"):
        make_grid(settings(f"sweep.axes=preset:{tmp_path}/theirs.yaml"))
    (tmp_path / "theirs.yaml").write_text("objective: {l2_weight: 0.5}\nexport: [wandb]\nout: elsewhere\n")
    cells = make_grid(settings(f"sweep.axes=preset:{tmp_path}/theirs.yaml")).cells
    assert {cell.config.export for cell in cells if cell.config is not None} == {()}
    assert {cell.config.objective.l2_weight for cell in cells if cell.config is not None} == {0.5}


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("sweep.axes=preset:gradinversoin", "gradinversoin is not known"),
        ("sweep.axes=preset:nowhere.yaml", "cannot be read"),
        ("sweep.axes=preset:latent_projection", "agents.generator is missing"),
    ],
)
def test_presets_that_cannot_be_had_are_refused(settings: Settings, word: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        make_grid(settings(word))

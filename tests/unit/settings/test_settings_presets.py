"""Each published attack as a preset: what it sets, what it says of itself, and what it needs."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from gradinversion.agents import Form, GradientLoss, TotalVariation
from gradinversion.refusal import ConfigError
from gradinversion.settings.help import help_text
from gradinversion.settings.run import (
    command_words,
    config_yaml,
    differences,
    load_config,
    load_config_file,
)
from gradinversion.settings.usage import preset_names, preset_text
from gradinversion.sweep.grid import make_grid

PRESETS = (
    *("gradinversion", "gradinversion_lazy", "gradinversion_paper", "inverting_gradients"),
    *("dlg", "idlg", "deep_inversion", "latent_projection"),
    *("ablation_gradient", "ablation_fidelity", "ablation_group", "ablation_registered"),
)
# What a preset cannot know and the user must say.
GIVEN = {"latent_projection": ["agents.generator=my.module:build"]}


def problems(*words: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(words)
    return caught.value.problems


def test_the_presets_are_those_that_are_documented() -> None:
    assert set(preset_names()) == set(PRESETS)
    assert preset_names()[0] == "gradinversion"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_loads_records_its_name_and_yields_to_words(name: str) -> None:
    given = GIVEN.get(name, [])
    assert load_config([f"preset={name}", *given]).preset == name
    config = load_config(["agents.learning_rate=0.017", f"preset={name}", *given])
    assert config.agents.learning_rate == 0.017


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_opens_with_its_command_and_says_what_it_is(name: str) -> None:
    command, summary, *rest = preset_text(name).splitlines()
    needed = " agents.generator=module:callable" if name in GIVEN else ""
    assert command == f"# python run.py preset={name}{needed}"
    assert re.fullmatch(r"# .*arXiv \d{4}\.\d{5}.*", summary)
    assert any("eviat" in line for line in rest), "a preset says how it deviates from its paper"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_the_attack_and_nothing_else(name: str) -> None:
    groups = {"labels", "objective", "peeling", "agents", "registration", "coordinator"}
    assert set(yaml.safe_load(preset_text(name))) <= groups


def test_the_default_preset_is_the_defaults() -> None:
    assert yaml.safe_load(preset_text("gradinversion")) == {}


def test_the_paper_preset_is_the_paper() -> None:
    config = load_config(["preset=gradinversion_paper"])
    assert config.registration.consensus == "mean"
    objective, agents = config.objective, config.agents
    assert (objective.form, objective.gradient_loss) == (Form.PAPER, GradientLoss.LAYER_L2)
    assert objective.total_variation is TotalVariation.ANISOTROPIC
    weights = (objective.gradient_weight, objective.total_variation_weight, objective.l2_weight)
    assert weights == (1e-3, 1e-4, 1e-6)
    assert (objective.batch_norm_weight, objective.group_weight) == (0.1, 0.01)
    assert (agents.count, agents.iterations, agents.warmup, agents.noise) == (8, 20000, 50, 0.2)
    assert not agents.sign
    assert not agents.box
    assert not config.peeling.enabled
    assert config.labels == "minimum"


def test_the_lazy_preset_is_the_default_without_registration() -> None:
    lazy, default = load_config(["preset=gradinversion_lazy"]), load_config([])
    assert differences(default, lazy) == ["registration.method (coarse_to_fine before, none now)"]


@pytest.mark.parametrize("name", ["dlg", "idlg"])
def test_the_first_attacks_descend_as_published(name: str) -> None:
    config = load_config([f"preset={name}"])
    assert (config.agents.optimiser, config.agents.learning_rate) == ("lbfgs", 1)
    assert config.objective.gradient_loss is GradientLoss.SQUARED_L2
    assert config.objective.total_variation_weight == config.objective.l2_weight == 0


def test_labels_are_found_with_the_images_by_one_agent_alone() -> None:
    assert load_config(["preset=dlg"]).labels == "joint"
    for word in ("agents.count=2", "peeling.enabled=true", "agents.generator=my.module:build"):
        (problem,) = problems("preset=dlg", word)
        assert "labels=joint" in problem
    (problem,) = problems("labels=joint")
    assert "agents.count=1" in problem


def test_latent_projection_needs_a_generator() -> None:
    (problem,) = problems("preset=latent_projection")
    assert "agents.generator is missing" in problem
    assert "agents.generator=module:callable" in problem
    config = load_config(["preset=latent_projection", *GIVEN["latent_projection"]])
    assert config.agents.generator == "my.module:build"
    assert not config.agents.sign
    assert not config.agents.box


def test_an_objective_without_any_term_is_refused_unless_a_generator_is_the_prior() -> None:
    zero = [f"objective.{name}_weight=0" for name in ("gradient", "total_variation", "l2", "batch_norm")]
    (problem,) = problems(*zero)
    assert "every weight of the objective is 0" in problem
    assert load_config([*zero, "agents.generator=my.module:build"]).objective.empty


@pytest.mark.parametrize("name", ["dlg", "idlg", "inverting_gradients"])
def test_attacks_before_gradinversion_use_one_seed_and_the_gradient_alone(name: str) -> None:
    config = load_config([f"preset={name}"])
    assert config.agents.count == 1
    assert not config.peeling.enabled
    assert config.objective.gradient_weight == 1
    assert (config.objective.batch_norm_weight, config.objective.group_weight) == (0, 0)


def test_the_control_uses_no_gradient() -> None:
    config = load_config(["preset=deep_inversion"])
    assert config.objective.gradient_weight == 0
    assert config.objective.activation_weight == 0
    assert not config.peeling.enabled
    assert config.objective.batch_norm_weight > 0


def test_an_unknown_preset_lists_the_known_ones() -> None:
    (problem,) = problems("preset=gradinvers")
    assert all(name in problem for name in PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    words = [f"preset={name}", "out=${HOME}", "client.images=2024-01-01", "audit.controls=constant_image,no_gradient"]
    words += GIVEN.get(name, [])
    config = load_config(words)
    path = tmp_path / "config.yaml"
    path.write_text(config_yaml(config), encoding="utf-8")
    assert load_config_file(path) == config


def test_the_help_shows_each_preset() -> None:
    text = help_text()
    assert all(re.search(rf"^  preset={name} +\w", text, re.MULTILINE) for name in PRESETS)


def test_a_preset_of_ones_own_is_a_file_of_differences(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("# mine\nagents:\n  count: 2\n  iterations: 70\nclient:\n  batch_size: 3\n")
    config = load_config([f"preset={mine}", "agents.iterations=80"])
    assert (config.agents.count, config.agents.iterations, config.client.batch_size) == (2, 80, 3)
    assert config.preset == str(mine)
    again = load_config(command_words(config))
    assert differences(config, again) == []


def test_the_settings_of_an_earlier_run_are_a_preset_but_for_its_folder(tmp_path: Path) -> None:
    earlier = load_config(["preset=dlg", "client.batch_size=2", "out=first", "restart=true", "seed=7"])
    (tmp_path / "config.yaml").write_text(config_yaml(earlier), encoding="utf-8")
    again = load_config([f"preset={tmp_path / 'config.yaml'}", "out=second"])
    assert differences(earlier, again) == []
    assert (again.out, again.restart, again.seed) == ("second", False, 7)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "is no file"),
        ("agents: [1", "cannot be read as a configuration"),
        ("agents:\n  cuont: 3\n", "agents.cuont is not a key: did you mean agents.count?"),
        ("agents:\n  count: many\n", "agents.count=many: give a whole number"),
    ],
)
def test_what_is_wrong_with_a_preset_file_is_told(tmp_path: Path, content: str | None, sentence: str) -> None:
    mine = tmp_path / "mine.yaml"
    if content is not None:
        mine.write_text(content)
    assert any(sentence in problem for problem in problems(f"preset={mine}"))


def test_each_row_of_the_ablation_adds_one_thing_to_the_one_before() -> None:
    rows = [load_config([f"preset={name}"]) for name in PRESETS[-4:]]
    added = [[change.partition(" ")[0] for change in differences(*pair)] for pair in pairwise(rows)]
    assert added == [
        ["objective.total_variation_weight", "objective.batch_norm_weight"],
        ["objective.group_weight", "registration.method", "registration.consensus"],
        ["registration.method"],
    ]
    assert not any(row.peeling.enabled for row in rows)


def test_the_ablation_is_one_audit() -> None:
    axis = ",".join(PRESETS[-4:])
    words = [f"sweep.axes=preset:{axis}", "sweep.batch_sizes=4", "sweep.defences=none", "sweep.bn=eval"]
    cells = make_grid(load_config(words)).cells
    assert [cell.config.preset for cell in cells if cell.config is not None] == list(PRESETS[-4:])
    registered = cells[-1].config
    assert registered is not None
    assert registered.objective == load_config(["preset=ablation_registered"]).objective

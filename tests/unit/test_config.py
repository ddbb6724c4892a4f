from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from gradinversion.agents import Form, GradientLoss, TotalVariation
from gradinversion.config import (
    WITHOUT_EFFECT,
    ConfigError,
    RunConfig,
    config_yaml,
    differences,
    load_config,
    load_config_file,
    preset_names,
    preset_text,
    to_plain,
)
from gradinversion.config_keys import keys, wanted
from gradinversion.coordinator import AttackConfig, Mode

PRESETS = (
    *("gradinversion", "gradinversion_lazy", "gradinversion_paper", "inverting_gradients"),
    *("dlg", "idlg", "deep_inversion", "latent_projection"),
)
# What a preset cannot know and the user must say.
GIVEN = {"latent_projection": ["agents.generator=my.module:build"]}


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
    old, new = flat(to_plain(before)), flat(to_plain(now))
    return [name for name in old if old[name] != new[name]]


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


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


def test_an_unknown_preset_lists_the_known_ones() -> None:
    (problem,) = problems("preset=gradinvers")
    assert all(name in problem for name in PRESETS)


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


def test_the_message_of_the_error_is_all_problems_one_a_line() -> None:
    with pytest.raises(ConfigError, match=re.escape("oops")) as caught:
        load_config(["oops", "agents.count=x"])
    assert str(caught.value).splitlines() == list(caught.value.problems)


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
    words = GIVEN.get(name, ["agents.generator=my.module:build"])
    assert command.replace("module:callable", "my.module:build") in (
        f"# python run.py preset={name}",
        f"# python run.py preset={name} {words[0]}",
    )
    assert (name in GIVEN) == ("=" in command.partition(name)[2])
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


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    words = [f"preset={name}", "out=${HOME}", "client.images=2024-01-01", "audit.controls=constant_image,no_gradient"]
    words += GIVEN.get(name, [])
    config = load_config(words)
    path = tmp_path / "config.yaml"
    path.write_text(config_yaml(config), encoding="utf-8")
    assert load_config_file(path) == config


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

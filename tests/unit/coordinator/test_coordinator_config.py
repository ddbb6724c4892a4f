"""Settings of an attack check themselves, whoever makes them."""

from __future__ import annotations

from typing import Any

import pytest
from gradinversion.agents import AgentsConfig, ObjectiveConfig
from gradinversion.coordinator import AttackConfig, CoordinatorConfig, Mode
from gradinversion.refusal import ConfigError


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"labels": "nonsense"}, "labels=nonsense: give auto, minimum"),
        ({"labels": ""}, "labels=: give auto"),
        ({"labels": "1,-2"}, "labels=1,-2: give auto"),
        ({"labels": "1,"}, "labels=1,: give auto"),
        ({"labels": "9" * 30}, "labels=9+: give auto"),
        ({"seed": -3}, "seed=-3: give a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed=4294967296: give a whole number"),
    ],
)
def test_an_attack_that_cannot_be_is_refused_when_it_is_described(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        AttackConfig(**settings)


def test_all_that_is_wrong_is_said_together() -> None:
    nothing = ObjectiveConfig(gradient_weight=0, total_variation_weight=0, l2_weight=0, batch_norm_weight=0)
    with pytest.raises(ConfigError) as caught:
        AttackConfig(seed=-1, labels="joint", objective=nothing)
    seed, weights, labels = caught.value.problems
    assert seed.startswith("seed=-1")
    assert weights.startswith("every weight of the objective is 0")
    assert labels.startswith("labels=joint")
    with pytest.raises(ConfigError) as caught:
        AgentsConfig(count=0, iterations=0, learning_rate=0.0, optimiser="sgd", generator="x")  # type: ignore[arg-type]
    assert [problem.partition("=")[0] for problem in caught.value.problems] == [
        *("agents.count", "agents.iterations", "agents.learning_rate", "agents.optimiser", "agents.generator")
    ]


@pytest.mark.parametrize("labels", ["auto", "minimum", "counts", "separation", "unmixing", "0", "0,1,2", "999999999"])
def test_labels_as_they_may_be_given(labels: str) -> None:
    assert AttackConfig(labels=labels).labels == labels


def test_a_mode_is_one_of_two_and_a_plain_word_means_it() -> None:
    assert CoordinatorConfig(mode="async").mode is Mode.ASYNC  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"coordinator\.mode=soon: give one of sync, async\."):
        CoordinatorConfig(mode="soon")  # type: ignore[arg-type]

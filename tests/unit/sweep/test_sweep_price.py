"""The price of a change and the labels that still leak stand in the sentence that recommends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from gradinversion.sweep.accuracy import Accuracy
from gradinversion.sweep.facts import AuditFacts
from gradinversion.sweep.grid import make_grid
from gradinversion.sweep.outcomes import Effect
from gradinversion.sweep.price import Price, Training
from gradinversion.sweep.verdict import judge_grid

Settings = Any
Facts = Callable[..., AuditFacts]
DEFENCES = "sweep.defences=none,noise:1,noise:10,prune:0.9,clip:0.1"
ALONE = "sweep.batch_sizes=4"


def trained(*values: float, chance: float = 0.5) -> Accuracy:
    return Accuracy(values, 300, 4, 160, 40, chance, 0.02)


def test_a_defence_that_cannot_be_trained_with_is_not_recommended_first(settings: Settings, fakes: Any) -> None:
    grid = make_grid(settings(ALONE, "sweep.defences=none,noise:10,prune:0.9"))
    known = fakes.results(grid, fakes.leak_undefended)
    verdict = judge_grid(
        grid, known, {"noise 10": Price(Training.NOT_FINITE), "prune 0.9": Price(Training.LEARNED, 0.3)}
    )
    assert [change.name for change in verdict.changes] == ["prune 0.9", "noise 10"]
    assert verdict.advice == (
        "The smallest change that stops the image leak: prune 0.9 (it costs 30.0 points of accuracy; 75% of the labels "
        "are still recovered)."
    )


@pytest.mark.parametrize(
    ("price", "words"),
    [
        (Price(Training.NOT_FINITE), "no training stayed finite with noise 10"),
        (
            Price(Training.NOTHING, 0.4),
            "a model trained with noise 10 was no better than always naming the most frequent class",
        ),
    ],
)
def test_where_only_such_a_defence_stops_the_leak_the_headline_says_so(
    settings: Settings, fakes: Any, price: Price, words: str
) -> None:
    grid = make_grid(settings(ALONE, "sweep.defences=none,noise:1,noise:10"))
    known = fakes.results(grid, lambda words: 0 if words["client.defence_strength"] == "10.0" else 3)
    known = {name: replace(result, labels=1.0) for name, result in known.items()}
    verdict = judge_grid(grid, known, {"noise 10": price, "noise 1": Price(Training.LEARNED, 0.1)})
    assert verdict.leaks
    assert verdict.advice == (
        "The image leak was stopped only by changes with which no useful model could be trained: the smallest is "
        f"noise 10 ({words}; 100% of the labels are still recovered)."
    )


def test_a_defence_that_stays_as_it_is_weighs_on_every_change(settings: Settings, fakes: Any) -> None:
    words = ("sweep.defences=none,noise:10", "client.defence=noise", "client.defence_strength=10")
    grid = make_grid(settings("sweep.batch_sizes=4,8", *words))
    known = fakes.results(grid, lambda words: 3 if words["client.batch_size"] == "4" else 0)
    verdict = judge_grid(grid, known, {"noise 10": Price(Training.NOT_FINITE)})
    assert {change.name: change.usable for change in verdict.changes} == {
        "batch 8": False,
        "batch 8 and no defence": True,
        "no defence": True,
    }
    assert "batch 8 and no defence (without a defence none costs accuracy;" in verdict.advice


def test_no_defence_protects_no_better_than_any(settings: Settings, fakes: Any) -> None:
    words = ("sweep.defences=noise:1,none", "client.defence=noise", "client.defence_strength=1")
    grid = make_grid(settings(ALONE, *words))
    verdict = judge_grid(grid, fakes.results(grid, lambda words: 2 if words["client.defence"] == "noise" else 0))
    assert {change.name: change.effect for change in verdict.changes} == {"no defence": Effect.UNPROVEN}


def test_labels_that_are_not_known_or_do_not_leak_are_told_so(settings: Settings, fakes: Any) -> None:
    grid = make_grid(settings(ALONE, "sweep.defences=none,noise:1"))
    for share, words in ((None, "how many of the labels are still"), (0.0, "none of the labels is recovered")):
        known = fakes.results(grid, fakes.leak_undefended)
        known = {name: replace(result, labels=share) for name, result in known.items()}
        assert words.replace(" still", "") in judge_grid(grid, known).advice.replace(" still", "")


def test_a_calm_headline_tells_the_labels(settings: Settings, fakes: Any) -> None:
    grid = make_grid(settings())
    verdict = judge_grid(grid, fakes.results(grid, lambda words: 0))
    assert verdict.headline.endswith("no image leak was shown, but 75% of the labels are recovered")
    assert verdict.advice == "Neither was one at any of the 5 other combinations of settings with a result."


def test_prices_are_those_that_were_measured(facts: Facts) -> None:
    accuracies = {
        "no defence": trained(0.9, 0.8),
        "noise 1": trained(0.7, 0.6),
        "prune 0.9": trained(0.5, 0.4),
    }
    found = facts(ALONE, DEFENCES, accuracies=accuracies, diverged=frozenset({"noise 10"}))
    assert found.prices == {
        "noise 10": Price(Training.NOT_FINITE),
        "noise 1": Price(Training.LEARNED, pytest.approx(0.2)),  # type: ignore[arg-type]
        "prune 0.9": Price(Training.NOTHING, pytest.approx(0.4)),  # type: ignore[arg-type]
    }
    # Without a defence nothing was learned either: no accuracy says anything about a defence.
    short = facts(ALONE, DEFENCES, accuracies=accuracies | {"no defence": trained(0.5, 0.5)})
    assert short.prices == {}

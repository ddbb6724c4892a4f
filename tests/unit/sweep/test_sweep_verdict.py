from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from gradinversion.sweep.grid import Grid, make_grid
from gradinversion.sweep.outcomes import Effect
from gradinversion.sweep.price import Price, Training
from gradinversion.sweep.results import CellResult, State
from gradinversion.sweep.verdict import GridVerdict, judge_grid

Settings = Any
Judged = Callable[..., GridVerdict]


@pytest.fixture
def judged(fakes: Any) -> Judged:
    """The verdict on made-up numbers of leaked images."""

    def judge(
        grid: Grid, leaked: Callable[[dict[str, str]], int | None], prices: dict[str, Price] | None = None
    ) -> GridVerdict:
        return judge_grid(grid, fakes.results(grid, leaked), prices)

    return judge


def effects(verdict: GridVerdict) -> dict[str, Effect]:
    return {change.name: change.effect for change in verdict.changes}


def learned(cost: float) -> Price:
    return Price(Training.LEARNED, cost)


def strength(words: dict[str, str]) -> float:
    return float(words["client.defence_strength"])


def test_the_weakest_defence_that_is_enough(settings: Settings, judged: Judged) -> None:
    grid = make_grid(settings())
    verdict = judged(grid, lambda words: 3 if strength(words) < 0.1 else 0)
    assert verdict.leaks
    assert verdict.headline == "At your settings (batch 4, no defence, eval BN, untrained) 3 of 4 images leak"
    assert verdict.advice.startswith("The smallest change that stops the image leak: noise 0.1 (")


def test_a_larger_batch_comes_before_a_defence(settings: Settings, judged: Judged) -> None:
    grid = make_grid(settings())
    verdict = judged(grid, lambda words: 3 if strength(words) < 1 and words["client.batch_size"] == "4" else 0)
    assert verdict.advice.startswith("The smallest change that stops the image leak: batch 8 (")
    assert "Otherwise: noise 1" in verdict.advice


def test_a_smaller_batch_comes_after_a_larger_one(settings: Settings, judged: Judged) -> None:
    grid = make_grid(settings("sweep.batch_sizes=1,4,8"))
    names = [change.name for change in judged(grid, lambda words: 1).changes]
    assert names.index("batch 8") < names.index("batch 1")


def test_combined_defences_are_weaker_only_than_the_same_ones_in_the_same_order(
    settings: Settings, judged: Judged
) -> None:
    combined = ("clip:0.5+noise:0.1", "clip:0.5+noise:1", "noise:2+clip:0.1", "clip:1+noise:0.5", "noise:3")
    grid = make_grid(settings("sweep.batch_sizes=4", f"sweep.defences=none,{','.join(combined)}"))
    leaking = ("none", "clip:0.5+noise:1", "noise:2+clip:0.1", "noise:3")
    found = effects(judged(grid, lambda words: 2 if words["client.defence"] in (*leaking, "noise") else 0))
    # Less noise at the same norm, and less noise at a larger norm.
    assert found["clip 0.5 + noise 0.1"] == found["clip 1 + noise 0.5"] == Effect.UNPROVEN
    held = effects(judged(grid, lambda words: 0 if words["client.defence"].startswith("clip") else 2))
    assert held["clip 0.5 + noise 0.1"] == held["clip 0.5 + noise 1"] == Effect.STOPS


def test_one_change_comes_before_two(settings: Settings, judged: Judged) -> None:
    grid = make_grid(settings())
    verdict = judged(grid, lambda words: 0 if strength(words) == 0.1 and words["client.batch_size"] == "8" else 2)
    assert verdict.changes[0].name == "batch 8"
    assert effects(verdict)["batch 8 and noise 0.1"] is Effect.UNPROVEN
    assert "None of the 5 changes" in verdict.advice


def test_a_defence_whose_stronger_level_leaks_is_not_taken_for_one(settings: Settings, judged: Judged) -> None:
    grid = make_grid(settings("sweep.batch_sizes=4"))
    verdict = judged(grid, lambda words: 0 if strength(words) == 0.1 else 3)
    assert effects(verdict) == {"noise 0.1": Effect.UNPROVEN, "noise 1": Effect.LEAKS}
    assert "None of the 2 changes" in verdict.advice


def test_stronger_means_smaller_for_clipping(settings: Settings, judged: Judged) -> None:
    grid = make_grid(settings("sweep.batch_sizes=4", "sweep.defences=none,clip:10,clip:1"))
    verdict = judged(grid, lambda words: 0 if strength(words) == 1 else 3)
    assert effects(verdict) == {"clip 10": Effect.LEAKS, "clip 1": Effect.STOPS}


def test_the_measured_cost_decides_among_defences(settings: Settings, judged: Judged, fakes: Any) -> None:
    grid = make_grid(settings("sweep.batch_sizes=4", "sweep.defences=none,noise:1,prune:0.9"))
    leaked = fakes.leak_undefended
    unmeasured = "what it costs in accuracy was not measured; 75% of the labels are still recovered"
    assert judged(grid, leaked).advice == f"The smallest change that stops the image leak: noise 1 ({unmeasured})."
    verdict = judged(grid, leaked, {"noise 1": learned(0.2), "prune 0.9": learned(0.034)})
    terms = "it costs 3.4 points of accuracy; 75% of the labels are still recovered"
    assert verdict.advice == f"The smallest change that stops the image leak: prune 0.9 ({terms})."
    # One whose price is known comes before one of which it is not.
    assert "prune 0.9" in judged(grid, leaked, {"prune 0.9": learned(0.034)}).advice
    gained = judged(grid, leaked, {"noise 1": learned(-0.02)})
    assert "noise 1 (it cost no accuracy in a short training; 75%" in gained.advice


def test_a_change_must_hold_at_every_model_state(settings: Settings, judged: Judged) -> None:
    grid = make_grid(settings("sweep.batch_sizes=4", "sweep.states=untrained,net.pt"))
    verdict = judged(
        grid, lambda words: 3 if strength(words) < (1 if words["client.weights"] == "net.pt" else 0.1) else 0
    )
    assert effects(verdict) == {"noise 0.1": Effect.LEAKS, "noise 1": Effect.STOPS}
    assert verdict.headline.endswith("3 of 4 images leak in the worst case (untrained: 3 of 4; net: 3 of 4)")


def test_what_was_not_run_at_one_state_is_not_known(settings: Settings, judged: Judged) -> None:
    grid = make_grid(settings("sweep.batch_sizes=4", "sweep.defences=none,noise:1", "sweep.states=untrained,net.pt"))
    verdict = judged(
        grid, lambda words: 3 if strength(words) == 0 else None if words["client.weights"] == "net.pt" else 0
    )
    assert effects(verdict) == {"noise 1": Effect.UNKNOWN}
    assert "it is not known: a cell has no result" in verdict.advice


def test_weakly_visible_images_are_no_stop(settings: Settings, fakes: Any) -> None:
    grid = make_grid(settings("sweep.batch_sizes=4"))
    known = fakes.results(grid, fakes.leak_undefended)
    known = {name: replace(result, weak=int(result.leaked == 0)) for name, result in known.items()}
    verdict = judge_grid(grid, known)
    assert set(effects(verdict).values()) == {Effect.LEAKS}


def test_a_failed_base_says_so_and_claims_nothing(settings: Settings, fakes: Any) -> None:
    grid = make_grid(settings())
    known = fakes.results(grid, fakes.leak_undefended)
    known[grid.cells[0].name] = CellResult(State.FAILED, "the folder is empty")
    verdict = judge_grid(grid, known)
    assert verdict.leaks is None
    assert "failed: the folder is empty" in verdict.advice


def test_nothing_leaks_is_no_proof(settings: Settings, judged: Judged) -> None:
    grid = make_grid(settings())
    verdict = judged(grid, lambda words: 0)
    assert verdict.leaks is False
    assert "no image leak was shown" in verdict.headline
    assert "not proven safe" in verdict.caution


def test_safe_settings_come_with_a_warning_of_those_that_are_not(
    settings: Settings, judged: Judged, fakes: Any
) -> None:
    grid = make_grid(settings("client.defence=noise", "client.defence_strength=1"))
    verdict = judged(grid, fakes.leak_undefended)
    assert verdict.leaks is False
    assert verdict.advice.startswith("Beware of changing to: no defence (3 of 4 images show)")


def test_a_grid_of_one_cell(settings: Settings, judged: Judged) -> None:
    grid = make_grid(settings("sweep.batch_sizes=4", "sweep.defences=none"))
    assert "widen it" in judged(grid, lambda words: 1).advice


def test_images_of_which_nothing_can_be_said_prove_nothing(settings: Settings, fakes: Any) -> None:
    grid = make_grid(settings("sweep.batch_sizes=4"))
    known = fakes.results(grid, fakes.leak_undefended)
    known = {name: replace(result, unknown=1) for name, result in known.items()}
    assert Effect.STOPS not in effects(judge_grid(grid, known)).values()


def with_places(known: dict[str, CellResult], places: Callable[[str], int | None]) -> dict[str, CellResult]:
    return {name: replace(result, exact_places=places(name)) for name, result in known.items()}


def test_the_smallest_change_that_ends_what_follows_exactly(settings: Settings, fakes: Any) -> None:
    grid = make_grid(settings("sweep.batch_sizes=4"))
    known = fakes.results(grid, fakes.leak_undefended)
    found = judge_grid(grid, with_places(known, lambda name: 0 if "noise-1" in name else 12), {"noise 1": learned(0.1)})
    assert found.exactness == (
        "From the update alone, up to stated errors, follow the activations at 12 places of the network at your "
        "settings; the smallest change with which none do, as far as peeling went: noise 1 (it costs 10.0 points of "
        "accuracy)."
    )
    # The images are stopped by less.
    assert "stops the image leak: noise" in found.advice
    assert {change.name: change.exactness for change in found.changes} == {
        "noise 0.1": Effect.LEAKS,
        "noise 1": Effect.STOPS,
    }
    assert [change.exact_places for change in found.changes if change.name == "noise 1"] == [0]


def test_no_change_ends_what_follows_exactly_where_a_stronger_one_does_not(settings: Settings, fakes: Any) -> None:
    grid = make_grid(settings("sweep.batch_sizes=4"))
    known = fakes.results(grid, fakes.leak_undefended)
    found = judge_grid(grid, with_places(known, lambda name: 0 if "noise-0.1" in name else 1))
    assert "the activations at one place of the network" in found.exactness
    assert found.exactness.endswith("no change in this grid was shown to end that.")
    assert {change.exactness for change in found.changes} == {Effect.UNPROVEN, Effect.LEAKS}


def test_what_follows_exactly_is_not_claimed_where_peeling_did_not_look(settings: Settings, fakes: Any) -> None:
    grid = make_grid(settings("sweep.batch_sizes=4"))
    known = fakes.results(grid, fakes.leak_undefended)
    assert judge_grid(grid, known).exactness == ""
    partly = judge_grid(grid, with_places(known, lambda name: 2 if "no-defence" in name else None))
    assert partly.exactness.endswith("no change in this grid was shown to end that (of 2 it is not known).")
    nothing = judge_grid(grid, with_places(known, lambda name: 0))
    assert nothing.exactness.startswith("No activations follow from the update exactly at your settings")


def test_of_smaller_changes_that_are_not_known_the_sentences_say_so(settings: Settings, fakes: Any) -> None:
    grid = make_grid(settings("sweep.batch_sizes=4", "sweep.defences=none,noise:0.1,noise:0.5,noise:1"))
    known = fakes.results(grid, fakes.leak_undefended)
    known = {name: replace(one, unknown="noise-0" in name) for name, one in known.items()}
    places = with_places(known, lambda name: 12 if "no-defence" in name else 0 if "noise-1" in name else None)
    found = judge_grid(grid, places)
    unmeasured = "what it costs in accuracy was not measured"
    assert found.advice == (
        f"The smallest change that was shown to stop the image leak: noise 1 ({unmeasured}; 75% of the labels are "
        "still recovered); of 2 smaller ones it is not known."
    )
    assert found.exactness == (
        "From the update alone, up to stated errors, follow the activations at 12 places of the network at your "
        "settings; the smallest change that was shown to end that, as far as peeling went: noise 1 "
        f"({unmeasured}); of 2 smaller ones it is not known."
    )


def test_of_a_smaller_change_that_is_not_known_beside_an_unusable_one(settings: Settings, fakes: Any) -> None:
    grid = make_grid(settings("sweep.batch_sizes=4"))
    known = fakes.results(grid, fakes.leak_undefended)
    known = {name: replace(one, unknown="noise-0" in name) for name, one in known.items()}
    found = judge_grid(grid, known, {"noise 1": Price(Training.NOT_FINITE, None)})
    assert found.advice == (
        "The image leak was stopped only by changes with which no useful model could be trained: the smallest is "
        "noise 1 (no training stayed finite with noise 1; 75% of the labels are still recovered); of one smaller "
        "change it is not known."
    )


def test_places_at_several_cells_are_those_of_the_worst(settings: Settings, fakes: Any) -> None:
    grid = make_grid(settings("sweep.batch_sizes=4", "sweep.states=untrained,net.pt"))
    known = fakes.results(grid, fakes.leak_undefended)
    found = judge_grid(grid, with_places(known, lambda name: 3 if "net" in name else None))
    assert found.exactness == (
        "From the update alone, up to stated errors, follow the activations at 3 places of the network at your "
        "settings in the worst case, and no change in this grid was shown to end that."
    )
    partly = judge_grid(
        grid, with_places(known, lambda name: 3 if "no-defence" in name else 0 if "net" in name else None)
    )
    assert {change.exactness for change in partly.changes} == {Effect.UNKNOWN}
    # None at one of the states is not none at all.
    assert {change.exact_places for change in partly.changes} == {None}

from __future__ import annotations

import pytest
from gradinversion.agents import AgentsConfig
from gradinversion.sweep.budget import LEAST_SHARE, Cost, Plan, fit, interpolate, remaining_fits
from gradinversion.sweep.placing import place

NAMES = [f"cell {index}" for index in range(6)]
COSTS = {name: Cost(overhead=2.0, step=0.01) for name in NAMES}


def planned(budget: float, at_once: int = 1, agents: int = 4) -> Plan:
    return fit(NAMES, COSTS, 1000, agents, at_once, lanes=2.0, budget=budget)


def needed(plan: Plan) -> float:
    return sum(plan.seconds[name] for name in plan.kept)


def test_a_cell_costs_its_controls_too() -> None:
    # Four agents in two lanes: a step that was measured with them takes half as long alone.
    assert Cost(2.0, 0.01).cell(100, 4, lanes=2.0, full_agents=4) == pytest.approx(4 * 2 + 3 * 1.0 + 4 * 100 * 0.005)


def test_what_fits_is_left_as_it_is() -> None:
    plan = planned(1e6)
    assert (plan.iterations, plan.agents, plan.kept, plan.notes) == (1000, 4, tuple(NAMES), ())


def test_steps_give_way_first() -> None:
    plan = planned(0.6 * needed(planned(1e6)))
    assert LEAST_SHARE * 1000 <= plan.iterations < 1000
    assert (plan.agents, plan.kept) == (4, tuple(NAMES))
    assert needed(plan) <= 0.6 * needed(planned(1e6))
    assert "steps instead of 1,000" in plan.notes[0]


def test_then_agents_then_the_least_informative_cells() -> None:
    everything = needed(planned(1e6))
    plan = planned(0.28 * everything)
    assert (plan.agents, plan.kept) == (2, tuple(NAMES))
    plan = planned(0.1 * everything)
    assert plan.kept == tuple(NAMES[: len(plan.kept)])
    assert 0 < len(plan.kept) < len(NAMES)
    assert needed(plan) <= 0.1 * everything
    assert any("left out" in note for note in plan.notes)


def test_one_cell_is_run_whatever_the_time() -> None:
    plan = planned(0.5)
    assert plan.kept == (NAMES[0],)
    assert "Not even one" in plan.notes[-1]


def test_cells_side_by_side_fit_more_but_no_cell_is_longer_than_the_budget() -> None:
    everything = needed(planned(1e6))
    assert planned(0.6 * everything, at_once=2).iterations == 1000
    short = planned(everything / 6 * 0.9, at_once=100)
    assert short.iterations < 1000


def test_more_time_never_gives_less() -> None:
    efforts = [
        (len(plan.kept), plan.agents * plan.iterations) for plan in (planned(budget) for budget in range(20, 900, 40))
    ]
    assert [cells for cells, _ in efforts] == sorted(cells for cells, _ in efforts)


def test_costs_between_measured_batch_sizes_lie_on_a_line() -> None:
    measured = {2: Cost(1.0, 0.01), 6: Cost(3.0, 0.03)}
    assert interpolate(measured, 4) == Cost(pytest.approx(2.0), pytest.approx(0.02))  # type: ignore[arg-type]
    assert interpolate(measured, 8).step == pytest.approx(0.04)
    assert interpolate(measured, 6) == measured[6]
    assert interpolate({2: Cost(1.0, 0.01)}, 8).step == pytest.approx(0.04)
    assert interpolate({8: Cost(9.0, 0.01), 9: Cost(1.0, 0.09)}, 64).overhead > 0


def test_a_cell_is_not_begun_when_it_would_end_too_late() -> None:
    plan = Plan(100, 2, ("a",), {"a": 10.0})
    assert remaining_fits(plan, "a", elapsed=40, ratio=1.0, budget=60)
    assert not remaining_fits(plan, "a", elapsed=40, ratio=3.0, budget=60)


@pytest.mark.parametrize(
    ("count", "available", "at_once", "gpus", "threads"),
    [
        (4, {"CPU": 2.0}, 1, 0.0, 1),
        (1, {"CPU": 2.0}, 2, 0.0, 1),
        (4, {"CPU": 64.0}, 10, 0.0, 1),
        (4, {"CPU": 16.0, "GPU": 1.0}, 1, 0.25, 4),
        (4, {"CPU": 64.0, "GPU": 8.0}, 2, 1.0, 8),
    ],
)
def test_agents_of_all_cells_have_their_place(
    count: int, available: dict[str, float], at_once: int, gpus: float, threads: int
) -> None:
    placing = place(AgentsConfig(count=count), 0, 10, available)
    assert (placing.at_once, placing.gpus, placing.threads) == (at_once, gpus, threads)
    seats = at_once * count
    assert placing.cpus * seats <= available["CPU"]
    assert placing.gpus * seats <= available.get("GPU", 0.0)


def test_the_users_places_stay() -> None:
    agents = AgentsConfig(count=2, cpus=0.5, gpus=0.0, threads=3)
    placing = place(agents, 5, 10, {"CPU": 8.0, "GPU": 1.0})
    assert placing.at_once == 5
    assert placing.apply(agents) == agents


def test_no_more_at_once_than_there_are_cells() -> None:
    assert place(AgentsConfig(count=1), 0, 3, {"CPU": 64.0}).at_once == 3

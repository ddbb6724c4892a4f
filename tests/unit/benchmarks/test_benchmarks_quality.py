"""The parts of the benchmark of quality that need neither photos nor the peer."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.agents import AgentsConfig
from gradinversion.benchmarks.quality_cells import CELLS
from gradinversion.benchmarks.quality_methods import Bench, Ours, Peer, first_reaching, ladder
from gradinversion.benchmarks.quality_rows import Row, Store, select, tuned_weight
from gradinversion.benchmarks.quality_table import middle, summarise
from gradinversion.capture import capture_gradient, load_model
from gradinversion.coordinator import AttackConfig, CoordinatorConfig
from gradinversion.coordinator.serial_group import attack
from gradinversion.peeling import PeelingConfig

STEPS = 1000


def peer(number: int, psnr: float, weight: float = 0.01, restarts: int = 1, cell: str = "C4") -> Row:
    settings = asdict(Peer(STEPS, weight, restarts))
    return {"cell": cell, "set": number, "method": "peer", "settings": settings, "psnr": psnr, "seconds": 10.0}


def ours(number: int, psnr: float, agents: int = 1, steps: int = STEPS, cell: str = "C4", **more: Any) -> Row:
    settings = asdict(Ours(agents, steps, more.get("peeling", True)))
    facts = {"cell": cell, "set": number, "method": "ours", "settings": settings}
    return facts | {
        "psnr": psnr,
        "seconds": steps / 100,
        "peeled": True,
        "gradient_loss": 0.1,
        "labels": 1.0,
        "code": "a",
    }


def climb(number: int, psnrs: list[float]) -> list[Row]:
    return [ours(number, psnr, steps=steps) for steps, psnr in zip(ladder(STEPS), psnrs, strict=True)]


def test_the_store_keeps_one_row_for_each_setting(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "rows.json")
    assert store.rows == []
    store.note("machine", "m")
    for row in (peer(0, 20.0), peer(1, 21.0), ours(0, 22.0), peer(0, 23.0)):
        store.add(row)
    assert len(store.rows) == 3
    found = Store(tmp_path / "deep" / "rows.json").find("C4", 0, "peer", asdict(Peer(STEPS, 0.01)))
    assert found is not None
    assert found["psnr"] == 23.0
    assert store.find("C4", 0, "peer", asdict(Peer(STEPS, 0.02))) is None


def test_a_row_is_measured_again_where_other_code_measured_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradinversion.benchmarks.quality_methods.make_case", lambda *_: None)
    values = iter([1.0, 2.0])
    store = Store(tmp_path / "rows.json")

    def measure(_: Any) -> dict[str, float]:
        return {"psnr": next(values)}

    rows = [Bench(store, tmp_path).row("C4", 0, "ours", {"steps": 1}, measure) for _ in range(2)]
    assert [row["psnr"] for row in rows] == [1.0, 1.0]
    assert Bench(store, tmp_path, again=True).row("C4", 0, "ours", {"steps": 1}, measure)["psnr"] == 1.0
    monkeypatch.setattr("gradinversion.benchmarks.quality_methods.code", lambda: "changed")
    rows = [Bench(store, tmp_path, again).row("C4", 0, "ours", {"steps": 1}, measure) for again in (False, True, True)]
    assert [row["psnr"] for row in rows] == [1.0, 2.0, 2.0]
    store.add(peer(0, 20.0))
    assert Bench(store, tmp_path, again=True).peer("C4", 0, Peer(STEPS, 0.01))["psnr"] == 20.0


def test_where_nothing_was_peeled_without_peeling_is_the_same_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradinversion.benchmarks.quality_methods.make_case", lambda *_: None)
    monkeypatch.setattr("gradinversion.benchmarks.quality_methods.run_ours", lambda *_: {"psnr": 5.0, "peeled": False})
    store = Store(tmp_path / "rows.json")
    store.add(ours(0, 22.0) | {"peeled": False})
    store.add(ours(1, 22.0))
    bench = Bench(store, tmp_path)
    assert bench.ours("C4", 0, Ours(1, STEPS, False))["psnr"] == 22.0
    assert bench.ours("C4", 1, Ours(1, STEPS, False))["psnr"] == 5.0


def test_the_peer_has_the_weight_that_is_best_over_all_tuning_sets() -> None:
    rows = [peer(0, 20.0, 0.01), peer(1, 20.0, 0.01), peer(0, 25.0, 0.02), peer(1, 16.0, 0.02), peer(0, 40.0, 0.05)]
    assert tuned_weight(rows, "C4", STEPS, (0, 1)) == 0.02
    assert tuned_weight(rows[:2], "C4", STEPS, (0, 1)) == 0.01
    assert tuned_weight(rows, "C8", STEPS, (0, 1)) is None


def test_select_looks_at_the_settings_that_are_named() -> None:
    rows = [ours(0, 1.0), ours(1, 2.0), ours(0, 3.0, agents=4)]
    assert {number: row["psnr"] for number, row in select(rows, "C4", "ours", agents=1).items()} == {0: 1.0, 1: 2.0}


def test_the_shortest_run_that_reaches_the_peer_counts() -> None:
    rows = climb(0, [10.0, 21.0, 19.0, 22.0, 22.5, 23.0, 24.0])
    found = first_reaching(rows, "C4", 0, STEPS, True, 20.0)
    assert found is not None
    assert found["settings"]["steps"] == 50
    assert first_reaching(rows, "C4", 0, STEPS, True, 24.5) is None


def test_a_ladder_ends_with_the_whole_run() -> None:
    assert ladder(1000) == [25, 50, 100, 150, 200, 400, 1000]
    assert ladder(20)[-1] == 20
    assert len(set(ladder(20))) == len(ladder(20))


def test_the_median_knows_what_was_not_reached() -> None:
    assert middle([0.1, None, 0.3]) == 0.3
    assert middle([0.1, None, None]) is None
    assert middle([0.1, None]) is None


def test_tables_compare_the_same_photo_sets() -> None:
    rows = [peer(0, 20.0), peer(1, 22.0), peer(2, 30.0), peer(0, 21.0, restarts=4), peer(1, 22.0, restarts=4)]
    rows += [ours(0, 27.0, 4), ours(1, 27.0, 4), ours(0, 26.0, steps=4000), ours(1, 25.0, steps=4000)]
    tables = summarise(rows, (0, 1), STEPS)
    assert tables["peer_weights"] == {"C4": 0.01}
    lines = {line["method"]: line for line in tables["quality"]}
    assert lines["peer, tuned, 1 x 1000"]["psnr"] == 21.0
    four = lines["ours, 4 x 1000"]
    assert four["over_peer"]["values"] == [6.0, 5.0]
    assert four["over_peer"]["low"] <= 5.5 <= four["over_peer"]["high"]
    assert four["over_one_agent"]["mean"] == 1.5
    assert lines["ours, 1 x 4000"]["over_peer"]["values"] == [5.0, 3.0]
    bars = {bar["bar"]: bar for bar in tables["bars"]}
    assert [bar["met"] for bar in bars.values()] == [True, True]
    assert all("time" not in bar for bar in bars)


def test_time_to_quality_is_told_also_where_it_is_not_reached() -> None:
    rows = [peer(0, 20.0), peer(1, 24.5), *climb(0, [10.0, 21.0, 19.0, 22.0, 22.5, 23.0, 24.0])]
    rows += climb(1, [10.0, 11.0, 12.0, 22.0, 22.5, 23.0, 24.0])
    tables = summarise(rows, (0, 1), STEPS)
    assert [(line["set"], line["steps"]) for line in tables["time"]] == [(0, 50), (1, None)]
    assert tables["time"][0]["ratio"] == pytest.approx(0.05)
    (bar,) = [bar for bar in tables["bars"] if bar["bar"].startswith("time")]
    assert not bar["met"]
    assert bar["found"] == "not reached (1 of 2 not reached)"


def test_a_set_whose_ladder_was_not_climbed_is_not_called_unreached() -> None:
    rows = [peer(0, 30.0), peer(1, 30.0), *climb(0, [10.0, 21.0, 19.0, 22.0, 22.5, 23.0, 24.0])[:3]]
    assert summarise(rows, (0, 1), STEPS)["time"] == []


def test_seconds_measured_in_turns_go_before_others() -> None:
    rows = [peer(0, 20.0), peer(1, 20.0), *climb(0, [10.0, 21.0, 19.0, 22.0, 22.5, 23.0, 24.0])]
    settings = asdict(Ours(1, 50)) | {"peer_steps": STEPS}
    race = {"cell": "C4", "set": 0, "method": "race", "settings": settings}
    rows.append(race | {"ours_seconds": [1.0, 2.0, 9.0], "peer_seconds": [10.0, 10.0, 10.0]})
    (line,) = summarise(rows, (0, 1), STEPS)["time"]
    assert (line["ratio"], line["in_turns"]) == (0.2, True)
    # Where nothing was peeled, without peeling is the same attack, and not timed twice.
    rows += [row | {"settings": row["settings"] | {"peeling": False}, "same": True} for row in rows[2:9]]
    assert [found["ratio"] for found in summarise(rows, (0, 1), STEPS)["time"]] == [0.2, 0.2]


def test_the_cell_where_everybody_fails_enters_no_median() -> None:
    rows = [
        row for number in (0, 1) for row in (peer(number, 20.0, restarts=4, cell="P4"), peer(number, 20.0, cell="P4"))
    ]
    rows += [ours(number, 12.0, agents, steps, "P4") for number in (0, 1) for agents, steps in ((4, STEPS), (1, 4000))]
    (bar,) = summarise(rows, (0, 1), STEPS)["bars"]
    assert bar["bar"].startswith("P4")
    assert not bar["met"]


@pytest.mark.parametrize("name", list(CELLS))
def test_labels_fit_the_network(name: str) -> None:
    cell = CELLS[name]
    assert max(cell.labels) < cell.classes
    if ":" in cell.network:
        assert load_model(cell.network, cell.classes, 32)(torch.rand(2, 3, 32, 32)).shape == (2, cell.classes)


def test_agents_in_one_process_meet_as_the_coordinator_says() -> None:
    model = load_model("convnet", 3, 8)
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    update = capture_gradient(model, images, torch.tensor([0, 1, 1]))
    config = AttackConfig(
        agents=AgentsConfig(count=3, iterations=12),
        coordinator=CoordinatorConfig(period=4, start=0.3),
        peeling=PeelingConfig(enabled=False),  # seeds that begin at known images have nothing to agree upon
    )
    found = attack(update, model, config).reconstruction
    assert found.rounds == 3
    assert found.iterations == 12
    assert [candidate.seed for candidate in found.candidates] == [0, 1, 2]
    alone = attack(update, model, replace(config, agents=AgentsConfig(count=1, iterations=12))).reconstruction
    assert not torch.equal(alone.candidates[0].images, found.candidates[0].images)
    again = attack(update, model, config).reconstruction
    assert torch.equal(again.images, found.images)

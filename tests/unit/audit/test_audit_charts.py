"""Geometry of the plots: what lies where, and what is left out."""

from __future__ import annotations

import math
import re

import pytest
from gradinversion.audit.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    draw_chart,
    draw_ruler,
    group_history,
)


def _row(seed: int, step: int, gradient: float, incarnation: int = 0) -> dict[str, float]:
    return {"seed": seed, "step": step, "gradient": gradient, "incarnation": incarnation}


def _points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.e]+) ([-\d.e]+)", path)]


def test_history_is_grouped_by_seed_and_broken_at_restarts_and_gaps() -> None:
    rows = [
        _row(4, 1, 1.0),
        _row(7, 1, 2.0),
        _row(4, 2, math.nan),
        _row(4, 3, 0.5),
        _row(4, 4, 1e300),
        _row(7, 2, 3.0, incarnation=1),
    ]
    four, seven = group_history(rows, "gradient", [4, 7])
    assert (four.name, four.points) == ("seed 4", ((1.0, 1.0), None, (3.0, 0.5), None))
    assert (seven.name, seven.points) == ("seed 7", ((1.0, 2.0), None, (2.0, 3.0)))


def test_seeds_beyond_the_colours_are_grey() -> None:
    assert [series.colour for series in group_history([], "gradient", range(11))] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8]


def test_equal_factors_are_equal_distances_on_the_log_axis() -> None:
    chart = draw_chart([Series("seed 0", ((0.0, 1.0), (50.0, 0.1), (100.0, 0.01)), 0)], "Loss", "loss")
    assert chart is not None
    (x0, y0), (x1, y1), (x2, y2) = _points(chart.lines[0].path)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert chart.y_label == "loss (log scale)"
    assert [tick.text for tick in chart.y_ticks] == ["0.01", "0.1", "1"]
    assert [tick.at for tick in chart.y_ticks] == pytest.approx([y2, y1, y0])


def test_a_loss_of_zero_makes_the_axis_linear_and_says_so() -> None:
    chart = draw_chart([Series("seed 0", ((0.0, 1.0), (1.0, 0.0)), 0)], "Loss", "loss")
    assert chart is not None
    assert chart.y_label == "loss (linear scale)"


@pytest.mark.parametrize(
    "values", [[1.0], [0.0466, 0.0467], [3e-9, 4e3], [-1.0, 2.0], [0.0], [5e-324, 1e-300], [1e-30, 3e38]]
)
def test_everything_stays_inside_the_frame(values: list[float]) -> None:
    points = tuple((1000.0 + 10 * index, value) for index, value in enumerate(values))
    chart = draw_chart([Series("seed 0", points, 0)], "Loss", "loss", marks=[5.0, 1000.0])
    assert chart is not None
    for x, y in _points(chart.lines[0].path):
        assert LEFT - 3.1 <= x <= WIDTH - RIGHT + 0.1
        assert TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1
    assert 1 <= len(chart.y_ticks) <= 9
    assert 1 <= len(chart.x_ticks) <= 8
    assert all(TOP - 0.1 <= tick.at <= HEIGHT - BOTTOM + 0.1 for tick in chart.y_ticks)
    assert all(LEFT - 0.1 <= at <= WIDTH - RIGHT + 0.1 for at in chart.marks)


def test_a_single_point_is_a_ring_and_not_an_invisible_line() -> None:
    chart = draw_chart([Series("seed 0", ((1.0, 1.0), None, (2.0, 1.0), (3.0, 0.5)), 0)], "Loss", "loss")
    assert chart is not None
    assert chart.lines[0].path.count("a3 3") == 2
    assert chart.lines[0].path.count("L") == 1


def test_nothing_to_draw_is_none() -> None:
    assert draw_chart([Series("seed 0", (None,), 0)], "Loss", "loss") is None
    assert draw_ruler([("agents", []), ("reconstruction", [math.nan])], 15.0, 1.0) is None
    assert draw_ruler([("reconstruction", [20.0])], math.inf, 1.0) is None


def test_the_ruler_places_values_in_order() -> None:
    ruler = draw_ruler([("agents", [25.0, 26.04]), ("consensus", [math.inf]), ("reconstruction", [28.0])], 15.8, 1.0)
    assert ruler is not None
    (_, agents_text, agents), (_, _, reconstruction) = ruler.rows
    assert agents_text == "25.0 – 26.0"
    assert ruler.floor < ruler.margin < agents[0] < agents[1] < reconstruction[0]

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradinversion.peeling import peel
from gradinversion.peeling.refusals import Refused, Why
from torch import nn


@pytest.mark.parametrize("why", list(Why))
def test_every_reason_has_words_with_its_figures(why: Why) -> None:
    words = Refused("rule", "value", why, places=4096, equations=1000, error=0.0512).words
    assert "{" not in words
    assert "?" not in words
    assert words[0].islower() or words[0].isdigit()


@pytest.mark.parametrize("error", [float("inf"), float("nan")])
def test_an_error_that_cannot_be_stated_is_no_figure(error: float) -> None:
    words = Refused("rule", "value", Why.INEXACT, places=4096, equations=1000, error=error).words
    assert words == "of what was found no error can be stated"


def test_features_that_nothing_determines_have_no_stated_error(capture: Callable[..., Any]) -> None:
    case = capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)), [5, 0, 1])
    nothing = {name: torch.zeros_like(g) for name, g in case.update.gradients.items()}
    message = peel(replace(case.update, gradients=nothing), case.model, case.labels).message
    assert "stopped at 3: the gradient does not determine the features behind it (noise" in message


def test_fewer_or_smaller_images_would_have_equations_enough() -> None:
    # Eight images of 8 x 8 places each, and equations for 147 of the 512.
    refused = Refused("rule", "value", Why.FEW_EQUATIONS, places=512, equations=147)
    assert refused.most_images(8) == 2
    assert refused.largest_side(8, 32) == 16


def test_equations_that_come_with_each_image_are_fewer_for_fewer_images() -> None:
    # Of each of four images 100 unknowns and 60 equations of its own, and 120 equations for all of them: enough for 3.
    refused = Refused("rule", "value", Why.FEW_EQUATIONS, places=400, equations=360, growing=240)
    assert refused.most_images(4) == 3


def test_where_one_image_is_too_many_none_is_said_to_do() -> None:
    assert Refused("rule", "value", Why.LARGE, places=12544, equations=4096).most_images(1) == 0


@pytest.mark.parametrize("why", [Why.INEXACT, Why.ALIKE, Why.RANK])
def test_what_no_number_of_images_mends_promises_nothing(why: Why) -> None:
    refused = Refused("rule", "value", why, places=512, equations=147, error=0.1)
    assert (refused.most_images(8), refused.largest_side(8, 32)) == (None, None)


def test_smaller_images_do_not_help_where_they_are_too_many() -> None:
    refused = Refused("rule", "value", Why.LARGE, places=80, equations=64, many=True)
    assert refused.most_images(80) == 64
    assert refused.largest_side(8, 32) == 0


@pytest.mark.parametrize("seen", [4, 12])
def test_another_number_of_visits_is_said_with_all_its_causes(seen: int) -> None:
    words = Refused("rule", "value", Why.VISITS, places=8, equations=seen).words
    assert f"shows {seen} visits of images and the facts make 8" in words
    assert "or visits merge" in words

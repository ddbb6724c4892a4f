"""From a case to its report, with attacks that cost nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from gradinversion.audit import AuditConfig, Case, Stage, assess, attack_and_assess, simulated
from gradinversion.audit.controls import without_gradient
from gradinversion.capture import CapturedUpdate, ClientConfig, PrivateBatch, read, simulate_client
from gradinversion.coordinator import AttackConfig, Reconstruction
from gradinversion.target.belief import Belief, turned
from gradinversion.target.preparation import prepare
from torch import nn

SMALL = ClientConfig(batch_size=4, image_size=16)
Make = Callable[..., tuple[Reconstruction, PrivateBatch]]


class Paper:
    """Answers every attack with the same result, and writes down what it was asked."""

    def __init__(self, answer: Reconstruction) -> None:
        self.answer = answer
        self.asked: list[tuple[CapturedUpdate, AttackConfig, str | None]] = []
        self.begun: list[tuple[Stage, str | None]] = []

    def attack(self, update: CapturedUpdate, config: AttackConfig, control: str | None) -> Reconstruction:
        if control == "one_agent":
            raise RuntimeError("no room for one more agent")
        self.asked.append((update, config, control))
        return self.answer

    def begins(self, stage: Stage, control: str | None = None) -> None:
        self.begun.append((stage, control))


@pytest.fixture(scope="module")
def case() -> Case:
    update, model, private = simulate_client(SMALL, 0)
    audit = AuditConfig(("no_gradient", "other_images", "one_agent"), "photos")
    send = simulated(SMALL, 0)
    return Case(update, model, AttackConfig(), private, send, SMALL, audit, {"seed": 3, "client": {"bn": "eval"}})


def test_an_attack_its_controls_and_its_report(case: Case, attack: Make, tmp_path: Path) -> None:
    answer, _ = attack(case.private, belief=Belief(case.update.facts))
    runner = Paper(answer)
    found = attack_and_assess(case, runner, tmp_path)
    assert runner.begun == [
        (Stage.ATTACK, None),
        (Stage.CONTROL, "no_gradient"),
        (Stage.CONTROL, "other_images"),
        (Stage.CONTROL, "one_agent"),
        (Stage.JUDGING, None),
    ]
    (update, config, nothing), (same, blind, first), (_, _, second) = runner.asked
    assert update is case.update
    assert config is case.attack
    assert (nothing, first, second) == (None, "no_gradient", "other_images")
    assert same is case.update
    assert blind == without_gradient(case.attack)
    assert [control.problem for control in found.controls] == ["", "", "no room for one more agent"]
    assert found.case is case
    assert found.reconstruction == replace(answer, config={"seed": 3, "client": {"bn": "eval"}})
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["config"] == {"seed": 3, "client": {"bn": "eval"}}
    assert written["truth_gap"] < 1e-5
    assert written["psnr_mean"] == found.report.psnr_mean
    assert {control["name"]: control["problem"] for control in written["controls"]}["one_agent"].startswith("no room")
    assert (tmp_path / "report.html").exists()


def test_the_truth_is_put_through_what_the_attack_believed(case: Case, attack: Make, tmp_path: Path) -> None:
    wrong = Belief(case.update.facts.stating(label_smoothing=read(0.3, "the final layer")))
    answer, _ = attack(case.private, belief=wrong)
    gap = attack_and_assess(case, Paper(answer), tmp_path).report.truth_gap
    assert gap is not None
    assert gap > 0.02


def test_an_update_whose_sign_the_attack_turned_is_no_contradiction(case: Case, attack: Make, tmp_path: Path) -> None:
    step = replace(case, update=turned(case.update), audit=AuditConfig(controls=()))
    answer, _ = attack(case.private, belief=prepare(step.update, step.model, step.attack.request).belief)
    assert answer.belief.sign_turned
    gap = attack_and_assess(step, Paper(answer), tmp_path).report.truth_gap
    assert gap is not None
    assert gap < 1e-5


def test_a_result_that_is_there_already_is_not_attacked_again(case: Case, attack: Make, tmp_path: Path) -> None:
    answer, _ = attack(case.private)
    runner = Paper(answer)
    plain = replace(case, audit=AuditConfig())
    found = assess(plain, answer, runner, tmp_path)
    assert (runner.asked, runner.begun, found.controls) == ([], [(Stage.JUDGING, None)], ())


def test_without_ground_truth_there_is_a_report_and_no_control(case: Case, attack: Make, tmp_path: Path) -> None:
    answer, _ = attack(case.private)
    runner = Paper(answer)
    found = attack_and_assess(replace(case, private=None), runner, tmp_path)
    assert [stage for stage, _ in runner.begun] == [Stage.ATTACK, Stage.JUDGING]
    assert found.report.psnr_mean is None


def test_a_case_made_by_hand_keeps_the_settings_of_its_attack(case: Case, attack: Make, tmp_path: Path) -> None:
    answer, _ = attack(case.private)
    answer = replace(answer, config={"seed": 8})
    found = assess(replace(case, settings={}), answer, Paper(answer), tmp_path)
    assert found.reconstruction.config == {"seed": 8}


def test_a_case_made_by_hand_brings_update_and_model_together(case: Case) -> None:
    wrapped = nn.DataParallel(case.model)
    renamed = {f"module.{name}": gradient for name, gradient in case.update.gradients.items()}
    by_hand = replace(case, model=wrapped, update=replace(case.update, gradients=renamed))
    assert by_hand.model is case.model
    assert list(by_hand.update.gradients) == list(case.update.gradients)

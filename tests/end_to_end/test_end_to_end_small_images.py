"""The smallest images that a client can be given, from its settings to the report, in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from gradinversion.audit.case import Case
from gradinversion.audit.pipeline import Stage, attack_and_assess
from gradinversion.capture import CapturedUpdate
from gradinversion.coordinator import AttackConfig, Coordinator, Reconstruction
from gradinversion.coordinator.serial_group import SerialGroup
from gradinversion.settings.case import obtain
from gradinversion.settings.run import load_config


@dataclass
class InThisProcess:
    case: Case

    def attack(self, update: CapturedUpdate, config: AttackConfig, control: str | None) -> Reconstruction:
        return Coordinator(update, self.case.model, config, SerialGroup(config)).run()

    def begins(self, stage: Stage, control: str | None = None) -> None:
        pass


@pytest.mark.parametrize("size", [(4, 4), (5, 5), (6, 6), (7, 7), (4, 12)])
def test_images_too_small_for_registration_are_attacked_and_judged(size: tuple[int, int], tmp_path: Path) -> None:
    height, width = size
    config = load_config(
        [
            *(f"client.image_size={height}", f"client.image_width={width}", "client.batch_size=2"),
            *("agents.count=2", "agents.iterations=8", "coordinator.period=4", "audit.controls=no_gradient"),
        ]
    )
    case = obtain(config)
    found = attack_and_assess(case, InThisProcess(case), tmp_path)
    assert found.reconstruction.images.shape == (2, 3, height, width)
    assert bool(torch.isfinite(found.reconstruction.images).all())
    assert [control.problem for control in found.controls] == [""]
    assert {line["rejected"] for line in found.reconstruction.registration} == {1.0}
    # Nothing was moved, so registration gained nothing.
    assert [image.registration_gain for image in found.report.images] == [0.0, 0.0]
    assert (tmp_path / "report.html").is_file()

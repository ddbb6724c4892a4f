"""What one look at an update determines is found once, however many seeds there are."""

from __future__ import annotations

import sys
from collections import Counter
from types import ModuleType
from typing import Any

import pytest
import torch
from gradinversion.agents import AgentsConfig
from gradinversion.capture import batch_norm, capture_gradient, load_images, load_model, update
from gradinversion.capture.labels import final_layer, unmixing
from gradinversion.coordinator import AttackConfig
from gradinversion.coordinator.serial_group import attack
from gradinversion.target import defence_evidence


def _count(module: ModuleType, name: str, counts: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the calls of a function under every name by which a module of the package knows it."""
    real = getattr(module, name)

    def counted(*args: Any, **named: Any) -> Any:
        counts[name] += 1
        return real(*args, **named)

    for one in list(sys.modules.values()):
        if getattr(one, "__name__", "").startswith("gradinversion") and getattr(one, name, None) is real:
            monkeypatch.setattr(one, name, counted)


def test_an_attack_of_four_seeds_looks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("convnet", 20)
    sent = capture_gradient(model, load_images("photos", 6, 32)[0], torch.tensor([3, 1, 4, 1, 5, 9]))
    counts = Counter[str]()
    for module, name in (
        (update, "weight_hash"),
        (batch_norm, "batch_norm_targets"),
        (defence_evidence, "allow_for_defence"),
        (unmixing, "_take_apart"),
        (final_layer, "trace_final_layer"),
    ):
        _count(module, name, counts, monkeypatch)
    attack(sent, model, AttackConfig(agents=AgentsConfig(count=4, iterations=2)))
    looks = ("weight_hash", "batch_norm_targets", "allow_for_defence", "_take_apart", "trace_final_layer")
    assert counts == dict.fromkeys(looks, 1)

"""What one look at an update determines is determined once in an attack, however many agents it has."""

from __future__ import annotations

import gc
import importlib
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from gradinversion.agents import AgentsConfig
from gradinversion.capture import ClientConfig, simulate_client
from gradinversion.coordinator import AttackConfig, Coordinator
from gradinversion.coordinator.serial_group import SerialGroup
from gradinversion.target import Target

# By the module in which each is called.
LOOKS = (
    ("capture.update", "weight_hash"),
    ("capture.labels.one_look", "trace_final_layer"),
    ("capture.labels.unmixing", "_take_apart"),
    ("target.preparation", "weigh_evidence"),
    ("target.solving", "peel"),
    ("target.target", "find_allowance"),
    ("target.target", "known_statistics"),
)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of them is called."""
    calls: Counter[str] = Counter()

    def count(name: str, look: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **more: Any) -> Any:
            calls[name] += 1
            return look(*arguments, **more)

        return counting

    for path, name in LOOKS:
        module = importlib.import_module(f"gradinversion.{path}")
        monkeypatch.setattr(module, name, count(name, getattr(module, name)))
    return calls


@pytest.mark.parametrize("agents", [1, 4])
def test_each_look_is_taken_once(counted: Counter[str], agents: int) -> None:
    # A class that repeats: its labels are read by taking the batch apart.
    settings = ClientConfig(batch_size=3, image_size=16, classes=10, labels="0,3,3", bn="train_shared")
    update, model, _ = simulate_client(settings, 0)
    config = AttackConfig(agents=AgentsConfig(count=agents, iterations=4))
    counted.clear()
    Coordinator(update, model, config, SerialGroup(config)).run()
    assert dict(counted) == {name: 1 for _, name in LOOKS}


class _Looking(SerialGroup):
    """Notes whether an object is still there when the first step is to begin."""

    def __init__(self, config: AttackConfig, of: weakref.ref[object]) -> None:
        super().__init__(config)
        self._of, self.held = of, True

    def open(self, target: Target) -> None:
        super().open(target)
        gc.collect()
        self.held = self._of() is not None


def test_the_model_that_the_attack_was_given_is_let_go_before_the_first_step() -> None:
    update, model, _ = simulate_client(ClientConfig(batch_size=1, image_size=8, classes=4), 0)
    config = AttackConfig(agents=AgentsConfig(count=1, iterations=1))
    group = _Looking(config, weakref.ref(model))
    coordinator = Coordinator(update, model, config, group)
    del model
    coordinator.run()
    assert not group.held

from __future__ import annotations

from gradinversion.coordinator import AttackConfig, CoordinatorConfig, Mode, flatten


def test_settings_within_settings_have_keys_with_dots() -> None:
    nested = {"seed": 3, "none": {}, "a": {"b": {"c": (1, 2)}}, "coordinator": CoordinatorConfig(mode=Mode.ASYNC)}
    assert list(flatten(nested)) == [
        ("seed", 3),
        ("a.b.c", (1, 2)),
        ("coordinator.mode", Mode.ASYNC),
        ("coordinator.period", 100),
        ("coordinator.start", 0.5),
        ("coordinator.staleness", 2),
    ]


def test_a_class_is_a_value_like_any_other() -> None:
    assert list(flatten({"kind": AttackConfig}, "the.")) == [("the.kind", AttackConfig)]

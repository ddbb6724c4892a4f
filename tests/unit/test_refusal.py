from __future__ import annotations

import importlib
import inspect
import pickle
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType

import gradinversion
import pytest
from gradinversion.agents import AgentsConfig
from gradinversion.coordinator import AttackConfig
from gradinversion.refusal import Checked, ConfigError, Refusal

ROOT = Path(gradinversion.__file__).resolve().parent
ASIDE = {"tests", "benchmarks", "docs", "build"}

# What no user can mend: caught within the package, or no error at all.
INTERNAL = {
    "CandidatesLostError": "the coordinator has the seeds make their round again",
    "DetachedError": "the user pressed Ctrl-C; the run goes on",
    "StaleOrderError": "the coordinator that gave the order has been replaced",
    "_Reached": "carries a value out of a forward pass",
}


def modules() -> Iterator[ModuleType]:
    """Every module of the package itself."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] in ASIDE or parts[0].startswith("."):
            continue
        yield importlib.import_module(".".join(["gradinversion", *(part for part in parts if part != "__init__")]))


def classes(base: type) -> dict[str, type]:
    """Those of the package that derive from a base, by name."""
    return {
        name: one
        for module in modules()
        for name, one in inspect.getmembers(module, inspect.isclass)
        if issubclass(one, base) and one.__module__ == module.__name__
    }


def test_every_error_of_the_package_is_a_refusal_or_known_to_be_internal() -> None:
    found = {name for name, one in classes(BaseException).items() if not issubclass(one, Refusal)}
    assert found == set(INTERNAL)


def test_a_refusal_is_also_the_builtin_error_that_a_library_would_raise() -> None:
    refusals = {name: one for name, one in classes(Refusal).items() if one is not Refusal}
    assert len(refusals) > 14
    assert [name for name, one in refusals.items() if not issubclass(one, ValueError | RuntimeError)] == []


def test_every_dataclass_of_settings_checks_itself() -> None:
    named = {name for name, one in classes(object).items() if name.endswith("Config") and is_dataclass(one)}
    assert named == {name for name, one in classes(Checked).items() if one is not Checked}
    assert named >= {"RunConfig", "AttackConfig", "AgentsConfig", "ClientConfig", "ToldConfig", "SweepConfig"}


def test_the_problems_of_a_configuration_survive_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ConfigError(["one.", "two."])))
    assert error.problems == ("one.", "two.")
    assert str(error) == "one.\ntwo."


def test_settings_in_a_dictionary_are_refused_with_the_class_to_give() -> None:
    with pytest.raises(ConfigError, match=r"^agents=\{'count': 1\}: give AgentsConfig\(\.\.\.\)"):
        AttackConfig(agents=dict(count=1))  # type: ignore[arg-type] # noqa: C408
    with pytest.raises(ConfigError) as caught:
        AttackConfig(objective=None, peeling=True)  # type: ignore[arg-type]
    assert len(caught.value.problems) == 2
    assert AttackConfig(agents=AgentsConfig(count=1)).agents.count == 1

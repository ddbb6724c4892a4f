"""All that an audit knows when it ends."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from ..settings.run import RunConfig, command_words
from .accuracy import Accuracy
from .grid import UNDEFENDED, Grid
from .price import Price, Training
from .results import CellResult


@dataclass(frozen=True)
class AuditFacts:
    """All that an audit knows when it ends."""

    config: RunConfig
    grid: Grid
    results: Mapping[str, CellResult]
    """By name of the cell; each has one."""
    configs: Mapping[str, RunConfig]
    """With which each cell was run, where it could be."""
    accuracies: Mapping[str, Accuracy]
    """By name of the defence."""
    accuracy_problems: Mapping[str, str]
    diverged: frozenset[str]
    """Defences with which training stayed finite at no learning rate; their problem says so too."""
    notes: tuple[str, ...]
    """What was reduced or left out, in sentences."""
    seconds: float

    @property
    def accuracy_costs(self) -> dict[str, float]:
        """Accuracy that each defence costs, in [0, 1]; without the figure of no defence nothing is known."""
        usual = self.accuracies.get(UNDEFENDED)
        if usual is None:
            return {}
        return {name: usual.mean - found.mean for name, found in self.accuracies.items() if name != UNDEFENDED}

    @property
    def prices(self) -> dict[str, Price]:
        """What each defence costs, as far as it was measured, by its name.

        Where a model without a defence learned nothing in so short a training, no accuracy says anything.
        """
        usual = self.accuracies.get(UNDEFENDED)
        found = {name: Price(Training.NOT_FINITE) for name in self.diverged}
        if usual is None or usual.mean <= usual.chance:
            return found
        for name, cost in self.accuracy_costs.items():
            learned = self.accuracies[name].mean > self.accuracies[name].chance
            found[name] = Price(Training.LEARNED if learned else Training.NOTHING, cost)
        return found

    def command(self, name: str) -> str | None:
        """What runs one cell again by itself, with its controls."""
        config = self.configs.get(name)
        return None if config is None else shlex.join(["python", "run.py", *command_words(config)])

    @property
    def whole_command(self) -> str:
        """What runs the audit again."""
        words = [word for word in command_words(self.config) if word != "resume=true"]
        return shlex.join(["python", "run.py", "audit", *words])

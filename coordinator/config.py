"""Settings of the rounds, and everything an attack needs to know."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from enum import StrEnum
from typing import Any

from ..agents import AgentsConfig, ObjectiveConfig
from ..peeling import PeelingConfig
from ..plugins import PluginKind, is_plugin
from ..refusal import Checked
from ..registration import RegistrationConfig
from ..target.labels import JOINT, LABEL_RULES
from ..target.request import Request
from ..time_span import seconds_of


class Mode(StrEnum):
    """``sync``: agents meet after each round, bit-equal on every run. ``async``: agents never wait."""

    SYNC = "sync"
    ASYNC = "async"


@dataclass(frozen=True)
class CoordinatorConfig(Checked):
    """When seeds meet."""

    mode: Mode = Mode.SYNC
    """sync or async."""
    period: int = 100
    """Steps between two consensuses."""
    start: float = 0.5
    """Share of the steps after which the first consensus is formed (the paper: 0.25)."""
    staleness: int = 2
    """async only: a candidate more periods behind the median seed than this is left out of the consensus."""
    save_every: str | None = "5m"
    """A checkpoint within a round after so much time, such as 90s, 5m or 2h, beside that of each round; none saves
    rounds alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "mode", Mode(self.mode))  # a plain word means the same as the member of that value

    def problems(self) -> list[str]:
        """Every value that cannot be carried out, one sentence each."""
        found = []
        if self.mode not in list(Mode):
            found.append(f"coordinator.mode={self.mode}: give one of {', '.join(Mode)}.")
        if self.period < 1:
            found.append(f"coordinator.period={self.period}: give a whole number of at least 1.")
        if not 0 <= self.start <= 1:
            found.append(f"coordinator.start={self.start}: give a share of the steps between 0 and 1.")
        if self.staleness < 1:
            found.append(f"coordinator.staleness={self.staleness}: give a whole number of at least 1.")
        if self.save_every is not None and not self.save_seconds:
            found.append(
                f"coordinator.save_every={self.save_every}: give a time above zero, such as 90s, 5m or 2h, or none."
            )
        return found

    @property
    def save_seconds(self) -> float | None:
        """``save_every`` in seconds; None where only rounds are saved."""
        return seconds_of(self.save_every)


_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class AttackConfig(Checked):
    """One attack: all that ``reconstruct`` needs beside the update and the model."""

    seed: int = 0
    """Base of every random number; agent k uses seed + k."""
    labels: str = "auto"
    """auto, minimum (the paper's rule), counts (repeats), separation (trained models), unmixing (any labels and models
    without pooling), joint (optimised with the images, as in DLG; for one agent without peeling), a rule of your own
    (module:callable), or the labels themselves: 0,1,2,3."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What a candidate is scored by."""
    peeling: PeelingConfig = field(default_factory=PeelingConfig)
    """Which layers are solved in closed form first."""
    agents: AgentsConfig = field(default_factory=AgentsConfig)
    """The seeds and how they descend."""
    registration: RegistrationConfig = field(default_factory=RegistrationConfig)
    """How candidates are made comparable."""
    coordinator: CoordinatorConfig = field(default_factory=CoordinatorConfig)
    """When seeds meet."""

    def problems(self) -> list[str]:
        """Every value that cannot be carried out, and what does not go together, one sentence each."""
        found = []
        if not 0 <= self.seed <= _LARGEST_SEED:
            found.append(f"seed={self.seed}: give a whole number from 0 to {_LARGEST_SEED}.")
        if self.own_label_rule is not None and not is_plugin(PluginKind.LABEL_RULE, self.labels):
            listed = ", ".join(LABEL_RULES)
            found.append(f"labels={self.labels}: give {listed}, module:callable, or the labels such as 0,1,2,3.")
        if self.objective.empty and self.agents.generator is None:
            found.append("every weight of the objective is 0: give at least one of them a positive number.")
        if self.labels == JOINT and (
            self.agents.count > 1 or self.peeling.enabled or self.agents.generator is not None
        ):
            found.append(
                "labels=joint finds labels together with pixels, in an order of each seed's own: give agents.count=1 "
                "peeling.enabled=false with it, and no agents.generator."
            )
        return found

    @property
    def own_label_rule(self) -> str | None:
        """The name of a label rule of the user's own; None where the rule is known, or the labels are given."""
        known = self.labels in LABEL_RULES or re.fullmatch(r"\d{1,9}(,\d{1,9})*", self.labels, re.ASCII)
        return None if known else self.labels

    @property
    def request(self) -> Request:
        """What it asks for before its first step."""
        objective = self.objective
        return Request(
            self.labels,
            self.peeling,
            gradient=objective.gradient_weight > 0,
            allows_for_defences=objective.allows_for_defences,
            statistics=objective.batch_norm_weight > 0,
            seed=self.seed,
            images_at_once=self.agents.images_at_once,
        )


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested settings, each with its key: ``("agents.count", 4)``.

    Args:
        settings: Mappings and dataclasses within each other, by name.
        prefix: What every key begins with.
    """
    for name, value in settings.items():
        inner = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        if isinstance(inner, Mapping):
            yield from flatten(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner

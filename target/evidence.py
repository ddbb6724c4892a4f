"""The facts about the client held against the update itself, before the attack.

Each check is a file of its own and looks at one kind of evidence; a new one is added to ``CHECKS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from ..capture import CapturedUpdate
from ..capture.decisive import decisive_facts
from ..capture.stated import StatedFact, state_facts
from .finding import Finding
from .sampling import check_sampling
from .step_counter import check_step_counter

Check = Callable[[CapturedUpdate, nn.Module], Finding]

CHECKS: tuple[Check, ...] = (check_step_counter, check_sampling)


@dataclass(frozen=True)
class Evidence:
    """The update with what was read off it, and what speaks against the rest."""

    update: CapturedUpdate
    contradictions: dict[str, str]
    """One sentence for each fact that the update speaks against, by the fact's name."""
    messages: tuple[str, ...] = ()

    def stated(self, model: nn.Module) -> tuple[StatedFact, ...]:
        """Every fact in words, the most decisive first."""
        return state_facts(self.update.facts, decisive_facts(self.update, model), self.contradictions)

    def and_also(self, finding: Finding) -> Evidence:
        """With what a further look has found."""
        update = self.update.stating(**finding.facts) if finding.facts else self.update
        contradictions = {**self.contradictions, **finding.contradictions}
        return replace(self, update=update, contradictions=contradictions, messages=(*self.messages, *finding.messages))


def weigh_evidence(update: CapturedUpdate, model: nn.Module) -> Evidence:
    """Hold every fact against the update; a check sees what those before it have read.

    Args:
        update: What the client sent; it must fit the model.
        model: The server's model.
    """
    found = Evidence(update, {})
    for check in CHECKS:
        found = found.and_also(check(found.update, model))
    return found

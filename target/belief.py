"""What an attack takes an update for, in a form that outlives it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..capture import CapturedUpdate, ClientFacts


@dataclass(frozen=True)
class Belief:
    """The facts with what was read off the update in place of what was assumed."""

    facts: ClientFacts
    sign_turned: bool = False
    """Whether the update has the sign of a step, and is taken as its negative."""

    def of(self, update: CapturedUpdate) -> CapturedUpdate:
        """The update as the attack takes it.

        Args:
            update: As it was sent.
        """
        taken = turned(update) if self.sign_turned else update
        return replace(taken, facts=self.facts)


def turned(update: CapturedUpdate) -> CapturedUpdate:
    """The update with its sign turned."""
    return replace(update, gradients={name: -gradient for name, gradient in update.gradients.items()})

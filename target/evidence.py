"""The facts about the client held against the update itself, before the attack.

Each check is a file of its own and looks at one kind of evidence; a new one is added to ``CHECKS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from ..capture import CapturedUpdate, OneLook
from ..capture.decisive import decisive_facts
from ..capture.stated import StatedFact, state_facts
from .belief import Belief, turned
from .clients import check_clients
from .defences import check_defences
from .dropout import check_dropout
from .finding import Finding
from .image_count import check_image_count
from .local_steps import check_local_steps
from .loss import check_loss
from .missing import check_missing
from .penalty import check_penalty
from .reach import check_reach
from .sampling import check_sampling
from .scale import check_scale
from .shared_statistics import BUFFERS, check_shared_statistics
from .sign import check_sign
from .step_counter import check_step_counter

Check = Callable[[CapturedUpdate, nn.Module, OneLook], Finding]


def _plain(check: Callable[[CapturedUpdate, nn.Module], Finding]) -> Check:
    """A check that does not look at the final layer."""
    return lambda update, model, look: check(update, model)


# The penalty first: sums that it enters tell the others' facts. The number of images before what it bounds; the sign
# before what sign a sum may have. Local steps before the counter of batches, which is held against the steps that are
# believed in the end, and before the statistics that are left out with it.
CHECKS: tuple[Check, ...] = (
    _plain(check_local_steps),
    _plain(check_step_counter),
    _plain(check_shared_statistics),
    _plain(check_sampling),
    _plain(check_clients),
    _plain(check_loss),
    check_penalty,
    check_image_count,
    check_sign,
    _plain(check_missing),
    lambda update, model, look: check_scale(update, model, look=look),
    check_defences,
    _plain(check_dropout),
    _plain(check_reach),
)


@dataclass(frozen=True)
class Evidence:
    """The update with what was read off it, and what speaks against the rest."""

    update: CapturedUpdate
    contradictions: dict[str, str]
    """One sentence for each fact that the update speaks against, by the fact's name."""
    messages: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    """See `Finding.limits`."""
    sign_turned: bool = False
    """Whether the update is the negative of the one that was sent."""

    @property
    def belief(self) -> Belief:
        """What the update is taken for."""
        return Belief(self.update.facts, self.sign_turned)

    def stated(self, model: nn.Module) -> tuple[StatedFact, ...]:
        """Every fact in words, the most decisive first."""
        return state_facts(self.update.facts, decisive_facts(self.update, model), self.contradictions)

    def without_limit(self, sentence: str) -> Evidence:
        """With one of the limits that no longer holds taken back."""
        return replace(self, limits=tuple(limit for limit in self.limits if limit != sentence))

    def and_also(self, finding: Finding) -> Evidence:
        """With what a further look has found."""
        update = turned(self.update) if finding.sign_turned else self.update
        update = update.without_buffers(BUFFERS) if finding.buffers_left_out else update
        update = update.stating(**finding.facts) if finding.facts else update
        contradictions = {**self.contradictions, **finding.contradictions}
        return replace(
            self,
            update=update,
            sign_turned=self.sign_turned != finding.sign_turned,
            contradictions={name: said for name, said in contradictions.items() if name not in finding.resolved},
            messages=(*self.messages, *finding.messages),
            limits=(*self.limits, *finding.limits),
        )


def weigh_evidence(update: CapturedUpdate, model: nn.Module, look: OneLook | None = None) -> Evidence:
    """Hold every fact against the update; a check sees what those before it have read.

    Args:
        update: What the client sent; it must fit the model.
        model: The server's model.
        look: At the final layer, where others ask it too.
    """
    found, look = Evidence(update, {}), look or OneLook()
    for check in CHECKS:
        found = found.and_also(check(found.update, model, look))
    return found

"""Controls: the same attack without what it claims to use. What a control shows too was not in the update.

Nothing here runs an attack by itself: whoever calls brings one, on Ray or without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from ..capture import BatchNormMode, CapturedUpdate, PrivateBatch
from ..coordinator import AttackConfig, Reconstruction
from ..refusal import Refusal
from .case import Case
from .pool import Pool, draw_batch
from .sending import Send

Attack = Callable[[str, CapturedUpdate, AttackConfig], Reconstruction]
"""Attacks an update on the model of the case under some settings; the first argument names the control."""

TITLES = {
    "constant_image": "constant image",
    "no_gradient": "no gradient",
    "other_images": "other images' gradient",
    "one_agent": "one agent",
}
MEANINGS = {
    "constant_image": "each private image's own mean colour: the best that can be said with one colour",
    "no_gradient": "the same attack with the priors alone: neither the gradient nor statistics of the batch",
    "other_images": "the same attack on the update of other images of the pool, under the same labels",
    "one_agent": "one agent with the steps of all agents together, on the right update: it compares, it clears nothing",
}
NULL_CONTROLS = ("constant_image", "no_gradient", "other_images")
"""They know nothing of the private images, so what they reach is no leak. ``one_agent`` sees the private gradient."""

Config = TypeVar("Config", bound=AttackConfig)


class ControlError(Refusal, ValueError):
    """A control that this attack cannot have."""


@dataclass(frozen=True)
class Control:
    """How one control ended."""

    name: str
    """One of ``CONTROLS``."""
    reconstruction: Reconstruction | None
    """None where it failed."""
    problem: str = ""
    """Why it failed, in one sentence."""


def run_controls(
    case: Case, attack: Attack, announce: Callable[[str], None] = lambda control: None
) -> tuple[Control, ...]:
    """Run the controls of a case that are attacks; ``constant_image`` needs none and is left out.

    A control that fails is handed back with its problem: the audit goes on without it, and says so.

    Args:
        case: names the controls in ``audit.controls``, in any order; each is run once. Without the private batch there
            is nothing to hold them against, and none is run.
        attack: runs an attack on the model of the case.
        announce: told the name of each control before it starts.
    """
    private, update, config = case.private, case.update, case.attack
    if private is None:
        return ()
    cases: dict[str, Callable[[], tuple[CapturedUpdate, AttackConfig]]] = {
        "no_gradient": lambda: (without_statistics(update), without_gradient(config)),
        "other_images": lambda: (other_update(case.send, private, case.pool), config),
        "one_agent": lambda: (update, alone(config)),
    }
    found = []
    for name in [name for name in cases if name in case.audit.controls]:
        announce(name)
        try:
            found.append(Control(name, attack(name, *cases[name]())))
        # Whatever it is (a cluster that does not start raises nearly anything): the result of the attack is not lost.
        except Exception as error:
            found.append(Control(name, None, " ".join(str(error).split()) or type(error).__name__))
    return tuple(found)


def without_gradient(config: Config) -> Config:
    """The settings of the attack in which the gradient counts for nothing: only the priors are left.

    With a generator and no other prior, what remains are random images of the generator.

    Raises:
        ControlError: nothing remains.
    """
    objective = replace(config.objective, gradient_weight=0.0)
    if objective.empty and config.agents.generator is None:
        raise ControlError(
            "audit.controls=no_gradient: this attack has no term beside the gradient; leave the control out, or give a "
            "prior a weight, such as objective.total_variation_weight=0.1"
        )
    return replace(
        config,
        objective=objective,
        peeling=replace(config.peeling, enabled=False),
    )


def without_statistics(update: CapturedUpdate) -> CapturedUpdate:
    """The update without the batch-norm statistics that its client shared: they are of the private batch too."""
    if update.buffers is None:
        return update
    mode = replace(update.facts.batch_norm, value=BatchNormMode.TRAIN_PRIVATE)
    return replace(update, facts=update.facts.stating(batch_norm=mode), buffers=None)


def alone(config: Config) -> Config:
    """The settings of one agent that makes the steps of all agents together, with no group to agree with."""
    agents = config.agents
    return replace(
        config,
        agents=replace(agents, count=1, minimum=1, iterations=agents.count * agents.iterations),
        objective=replace(config.objective, group_weight=0.0),
    )


def other_update(send: Send, private: PrivateBatch, pool: Pool | None) -> CapturedUpdate:
    """What the same client would have sent for images of the pool, under the private labels.

    Raises:
        ValueError: there is no pool, or it holds too few images, or nothing can be sent in this way.
    """
    if pool is None:
        raise ValueError("the control other_images needs other images: give audit.pool=FOLDER or audit.pool=photos")
    return send(draw_batch(pool, private))

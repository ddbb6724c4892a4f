"""Controls: the same attack without what it claims to use. What a control shows too was not in the update.

Nothing here runs an attack by itself: whoever calls brings one, on Ray or without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from ..capture import BatchNormMode, CapturedUpdate, ClientConfig, PrivateBatch, UpdateError, simulate_client
from ..capture.client.real_client import resend
from ..capture.defences import FROM_IMAGES, apply_defence
from ..coordinator import AttackConfig, Reconstruction
from .config import CONTROLS
from .pool import Pool, draw_batch

Attack = Callable[[CapturedUpdate, AttackConfig], Reconstruction]
"""Attacks an update under some settings, on the model of the run."""

Send = Callable[[PrivateBatch], CapturedUpdate]
"""What the client of the run would have sent for another batch."""

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


class ControlError(ValueError):
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
    names: Iterable[str],
    update: CapturedUpdate,
    config: AttackConfig,
    attack: Attack,
    *,
    private: PrivateBatch,
    send: Send,
    pool: Pool | None = None,
    announce: Callable[[str], None] = lambda name: None,
) -> tuple[Control, ...]:
    """Run the controls that are attacks; ``constant_image`` needs none and is left out.

    A control that fails is handed back with its problem: the audit goes on without it, and says so.

    Args:
        names: of ``CONTROLS``, in any order; each is run once.
        update: that was attacked.
        config: of the attack on it.
        attack: runs an attack on the model of the run.
        private: the private batch, whose labels the other images are given.
        send: makes an update in the way of the one that was attacked, for the control with other images.
        pool: the other images; without it ``other_images`` fails.
        announce: told the name of each control before it starts.

    Raises:
        KeyError: an unknown name.
    """
    wanted = set(names)
    unknown = wanted - set(CONTROLS)
    if unknown:
        raise KeyError(f"{', '.join(sorted(unknown))}: choose controls among {', '.join(CONTROLS)}")
    cases: dict[str, Callable[[], tuple[CapturedUpdate, AttackConfig]]] = {
        "no_gradient": lambda: (without_statistics(update), without_gradient(config)),
        "other_images": lambda: (other_update(send, private, pool), config),
        "one_agent": lambda: (update, alone(config)),
    }
    found = []
    for name in [name for name in cases if name in wanted]:
        announce(name)
        try:
            found.append(Control(name, attack(*cases[name]())))
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


def simulated(client: ClientConfig, seed: int) -> Send:
    """What a simulated client sends."""
    return lambda batch: simulate_client(client, seed, batch)[0]


def like_the_client(update: CapturedUpdate, model: nn.Module, seed: int) -> Send:
    """What the client behind a captured update would have sent, as far as the update tells it.

    Args:
        update: that was attacked.
        model: that it belongs to.
        seed: of the order of shuffled local epochs, and of the defences' noise.
    """

    def send(batch: PrivateBatch) -> CapturedUpdate:
        generator = torch.Generator().manual_seed(seed)
        sent = resend(update, model, batch.images, batch.labels, generator)
        gradients = dict(sent.gradients)
        for defence in update.defences:
            if defence.name in FROM_IMAGES:
                raise UpdateError(f"the client's defence {defence.name!r} cannot be carried out on other images")
            gradients = apply_defence(gradients, defence.name, defence.strength, generator)
        return replace(sent, gradients=gradients, facts=update.facts)

    return send


def other_update(send: Send, private: PrivateBatch, pool: Pool | None) -> CapturedUpdate:
    """What the same client would have sent for images of the pool, under the private labels.

    Raises:
        ValueError: there is no pool, or it holds too few images, or nothing can be sent in this way.
    """
    if pool is None:
        raise ValueError("the control other_images needs other images: give audit.pool=FOLDER or audit.pool=photos")
    return send(draw_batch(pool, private))

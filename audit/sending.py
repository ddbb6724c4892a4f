"""What the client of a case would have sent for other images: the control with other images attacks that."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import torch
from torch import nn

from ..capture import CapturedUpdate, ClientConfig, PrivateBatch, UpdateError, simulate_client
from ..capture.client.defending import apply_defence
from ..capture.client.resending import resend
from ..capture.defences import FROM_IMAGES

Send = Callable[[PrivateBatch], CapturedUpdate]
"""What the client of the case would have sent for another batch."""


def simulated(client: ClientConfig, seed: int) -> Send:
    """What a simulated client sends."""
    return lambda batch: simulate_client(client, seed, batch)[0]


def like_the_client(update: CapturedUpdate, model: nn.Module, seed: int, trusted: Collection[str] = ()) -> Send:
    """What the client behind a captured update would have sent, as far as the update tells it.

    Args:
        update: that was attacked.
        model: that it belongs to.
        seed: of the order of shuffled local epochs, and of the defences' noise.
        trusted: names of defences that are code of the user's own, as the user tells them: what a file alone names is
            not run.
    """

    def send(batch: PrivateBatch) -> CapturedUpdate:
        generator = torch.Generator().manual_seed(seed)
        sent = resend(update, model, batch.images, batch.labels, generator)
        gradients = dict(sent.gradients)
        for defence in update.defences:
            if defence.name in FROM_IMAGES:
                raise UpdateError(f"the client's defence {defence.name!r} cannot be carried out on other images")
            if defence.is_own and defence.name not in trusted:
                raise UpdateError(
                    f"the client's defence {defence.name!r} is code that only the update's file names, so that it is "
                    "not run on other images; name it in told.defences too"
                )
            gradients = apply_defence(gradients, defence.name, defence.strength, generator)
        return replace(sent, gradients=gradients, facts=update.facts)

    return send

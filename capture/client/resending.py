"""What the client of a captured update would have sent for other images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UpdateError
from ..facts import CROSS_ENTROPY, ClientFacts, Penalty, Reduction, Sampling
from ..update import CapturedUpdate
from ..update_kind import UpdateKind
from .gradient import capture_gradient
from .local_training import train_locally


def resend(
    update: CapturedUpdate, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator | None = None
) -> CapturedUpdate:
    """What the client of this update would have sent for these images, before any defence.

    Args:
        update: Tells how: a gradient or local steps, the normalisation and the batch norm.
        model: The server's model; left as it was.
        images: Pixels in [0, 1].
        labels: One class index per image.
        generator: Draws the orders of shuffled local epochs.

    Raises:
        UpdateError: The update does not tell all that this takes.
    """
    _require_plain(update.facts)
    if update.kind is UpdateKind.GRADIENT:
        return capture_gradient(model, images, labels, normalisation=update.normalisation, batch_norm=update.batch_norm)
    if update.local is None or update.local.learning_rate is None:
        raise UpdateError("the client's learning rate is not known, so its local steps cannot be made again")
    return train_locally(
        model,
        images,
        labels,
        local=update.local,
        normalisation=update.normalisation,
        batch_norm=update.batch_norm,
        generator=generator,
    )


def _require_plain(facts: ClientFacts) -> None:
    """Refuse facts about the loss or the sum that no simulated client has."""
    wanted: dict[str, object] = {
        "loss": CROSS_ENTROPY,
        "reduction": Reduction.MEAN,
        "loss_scale": 1.0,
        "label_smoothing": 0.0,
        "penalty": Penalty(),
        "dropout": False,
        "sampling": Sampling(),
        "clients": 1,
    }
    found = [name.replace("_", " ") for name, value in wanted.items() if getattr(facts, name).value != value]
    if found:
        raise UpdateError(
            f"a client with this {' and '.join(found)} is not simulated, so nothing is sent as it would be"
        )

"""Where the seeds of an attack begin, by what was peeled."""

from __future__ import annotations

import torch
from torch import nn

from ..capture import CapturedUpdate, client_mode
from ..capture.labels.final_layer import natural_noise
from ..peeling import Anchor
from .second_derivative import forward_to
from .start import Start


def known_start(anchor: Anchor, update: CapturedUpdate, model: nn.Module) -> Start | None:
    """The images, where the anchor's activations are the images; else None.

    Args:
        anchor: From peeling.
        update: What is attacked.
        model: The server's model.
    """
    if anchor.one_sided or tuple(anchor.activations.shape[1:]) != tuple(update.image_shape):
        return None
    probe = natural_noise(update.image_count, update.image_shape).to(next(model.parameters()))
    with torch.no_grad(), client_mode(model, update.batch_norm):
        reached = forward_to(model, probe, anchor.module)
    if not torch.equal(reached, probe):
        return None  # of the same shape, but others
    images = anchor.activations.detach().cpu()
    return Start(images, torch.zeros(len(images)))

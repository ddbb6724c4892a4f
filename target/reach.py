"""Whether the pixels can be descended at all: whether what the model makes of them has a derivative by them."""

from __future__ import annotations

import torch
from torch import nn

from ..capture import CapturedUpdate, client_mode
from ..capture.forward import gradient, on_probes
from ..capture.labels.final_layer import natural_noise
from .finding import Finding

_PROBES = 4


def check_reach(update: CapturedUpdate, model: nn.Module) -> Finding:
    """A derivative of zero by every pixel, at random candidates in the client's mode, is a fact to state.

    Args:
        update: What the client sent.
        model: The server's model.
    """
    if reaches_pixels(update, model):
        return Finding()
    sentence = (
        "The loss does not depend on the pixels in a way that can be descended: at random candidates its derivative by "
        "every pixel is zero (an input that is rounded, a detach, layers under no_grad). The images found therefore "
        "say nothing of what the update shows; labels and activations that are solved for in closed form are not "
        "touched by this."
    )
    return Finding(limits=(sentence,))


def reaches_pixels(update: CapturedUpdate, model: nn.Module) -> bool:
    """Whether the model's outputs have a derivative by any pixel that is not zero."""
    like = next(model.parameters())

    def run(count: int) -> bool:
        images = natural_noise(count, update.image_shape).to(like).requires_grad_()
        with torch.enable_grad(), client_mode(model, update.batch_norm):
            outputs = model(images)
            if not outputs.requires_grad:
                return False
            weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
            (found,) = gradient((weights * outputs).sum(), [images])
        return bool(found.any())

    size = update.image_count if update.local is None else len(update.local.batches(update.image_count)[0])
    return on_probes(run, update.image_shape, _PROBES, size)

"""Whether a gradient is that of cross-entropy on a softmax, on which the rules for labels and layer peeling rest."""

from __future__ import annotations

import torch
from torch import nn

from ..batch_norm import client_mode
from ..facts import CROSS_ENTROPY
from ..forward import on_probes
from ..losses import NLL
from ..update import CapturedUpdate
from .final_layer import PROBE_COUNT, natural_noise

# How far the logarithm of the sum of probabilities may be from zero.
_NORMALISED = 1e-4


def is_softmax(update: CapturedUpdate, model: nn.Module) -> bool:
    """Whether the client's loss is cross-entropy: by that name, or as ``nll_loss`` of a model that ends in log_softmax.

    Args:
        update: Of this model.
        model: The server's model.
    """
    if update.loss == CROSS_ENTROPY:
        return True
    return update.loss == NLL and _is_normalised(update, model)


def _is_normalised(update: CapturedUpdate, model: nn.Module) -> bool:
    like = next(model.parameters())

    def run(count: int) -> bool:
        with torch.no_grad(), client_mode(model, update.batch_norm):
            outputs = model(natural_noise(count, update.image_shape).to(like))
        return bool((outputs.logsumexp(dim=1).abs() < _NORMALISED).all())

    return on_probes(run, update.image_shape, PROBE_COUNT, update.image_count)

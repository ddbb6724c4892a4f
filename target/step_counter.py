"""Batch norm counts the batches that it has seen: by how much the counter moved is the number of local steps."""

from __future__ import annotations

from torch import nn

from ..capture import CapturedUpdate
from ..capture.step_count import counted_steps
from .finding import Finding


def check_step_counter(update: CapturedUpdate, model: nn.Module) -> Finding:
    """Hold the number of steps that the facts make against ``num_batches_tracked``, where the client shared it.

    Args:
        update: What the client sent.
        model: The server's model, before the client's steps.
    """
    counted = counted_steps(model, update.buffers or {})
    if counted is None or counted < 0:
        # Of a counter that went back nothing follows: it was reset, or is not that of this server's model.
        return Finding()
    local = update.local
    steps = 1 if local is None else local.steps(update.image_count)
    if counted == steps:
        return Finding()
    sentence = (
        f"batch norm's counter num_batches_tracked moved by {counted}, so the client ran {counted} "
        f"batch{'es' * (counted != 1)}, and the facts say {steps}"
    )
    names = ("image_count",) if local is None else ("epochs", "batch_size")
    return Finding(contradictions=dict.fromkeys(names, sentence))

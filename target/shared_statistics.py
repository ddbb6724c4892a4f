"""The running statistics that a client shares, held against the server's and against what the gradient shows."""

from __future__ import annotations

from torch import nn

from ..capture import CapturedUpdate, impossible_layers
from ..peeling.own_statistics import StatisticsOff
from .finding import Finding

BUFFERS = "running statistics that came and are not those of the client's step"
_LEFT_OUT = "They are left out, and the client is taken for one that keeps its own."


def check_shared_statistics(update: CapturedUpdate, model: nn.Module) -> Finding:
    """Whether any batch can have moved the server's running statistics to those that came.

    Args:
        update: What the client sent.
        model: The server's model, before the client's step.
    """
    if update.buffers is None:
        return Finding()
    if others := update.buffer_mismatches(model):
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        return _left_out(f"the running statistics that came are not those of the model's layers: {others[0]}{more}")
    layers = impossible_layers(update, model)
    if not layers:
        return Finding()
    more = f" (and of {len(layers) - 1} more)" if len(layers) > 1 else ""
    sentence = (
        f"the running statistics of layer {layers[0]!r}{more} that came are none that a batch makes of the server's, "
        "since the batch's variance would be below zero: they are another model's, or moved by more steps or by "
        "another momentum than the facts and the model say"
    )
    return _left_out(sentence)


def peeled_statistics(off: StatisticsOff | None) -> Finding:
    """What the batch's own statistics, which follow from the gradient, say of those that came.

    Args:
        off: From peeling, where they are not the same.
    """
    if off is None:
        return Finding()
    sentence = (
        f"the statistics of the batch at layer {off.layer!r} follow from the gradient, and those that came with the "
        f"update are off from these by {off.share:.1g} of its deviation"
    )
    if off.rounded:
        return Finding(
            messages=(f"{sentence[0].upper()}{sentence[1:]}, as rounded ones are; images do not rest on them.",)
        )
    return _left_out(sentence)


def _left_out(sentence: str) -> Finding:
    said = f"{sentence[0].upper()}{sentence[1:]}. {_LEFT_OUT}"
    return Finding(contradictions={"batch_norm": sentence}, messages=(said,), buffers_left_out=True)

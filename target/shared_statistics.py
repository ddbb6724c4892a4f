"""The running statistics that a client shares, held against the server's and against what the gradient shows."""

from __future__ import annotations

from torch import nn

from ..capture import CapturedUpdate, UpdateError, impossible_layers
from ..capture.step_count import counted_steps
from ..peeling.own_statistics import StatisticsOff
from .finding import Finding

BUFFERS = "running statistics that came and that the attack goes without"
_LEFT_OUT = "They are left out, and the client is taken for one that keeps its own."
_OR_STEPS = (
    "they are another model's, or the client made other steps than the facts say (epochs, image_count, batch_size)"
)


def check_shared_statistics(update: CapturedUpdate, model: nn.Module) -> Finding:
    """Whether any batch can have moved the server's running statistics to those that came.

    They move by the number of steps, too: where that is in doubt, they are left out, and the mode that was told is not
    contradicted.

    Args:
        update: What the client sent.
        model: The server's model, before the client's step.
    """
    if update.buffers is None:
        return Finding()
    if others := update.buffer_mismatches(model):
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        return _left_out(f"the running statistics that came are not those of the model's layers: {others[0]}{more}")
    try:
        layers = impossible_layers(update, model)
    except UpdateError as error:
        return _left_out(f"the running statistics that came do not tell a batch's: {error}", contradicts=False)
    if not layers:
        return Finding()
    more = f" (and of {len(layers) - 1} more)" if len(layers) > 1 else ""
    sentence = (
        f"the running statistics of layer {layers[0]!r}{more} that came are none that a batch makes of the server's, "
        "since the batch's variance would be below zero"
    )
    if steps_doubted(update, model):
        return _left_out(f"{sentence}: {_OR_STEPS}", contradicts=False)
    return _left_out(
        f"{sentence}: they are another model's, or moved by more steps or by another momentum than the facts and the "
        "model say"
    )


def steps_doubted(update: CapturedUpdate, model: nn.Module) -> bool:
    """Whether the client may have made another number of steps than the facts make: nobody vouches for that, or batch
    norm's counter speaks against it.

    Args:
        update: What the client sent.
        model: The server's model, before the client's steps.
    """
    local, counted = update.local, counted_steps(model, update.buffers or {})
    if counted is not None:
        # The counter vouches for it too.
        return counted != (1 if local is None else local.steps(update.image_count))
    facts = update.facts.local
    return facts is not None and (facts.epochs.assumed or facts.batch_size.assumed)


def peeled_statistics(off: StatisticsOff | None, doubted: bool = False) -> Finding:
    """What the batch's own statistics, which follow from the gradient, say of those that came.

    Args:
        off: From peeling, where they are not the same.
        doubted: See `steps_doubted`.
    """
    if off is None:
        return Finding()
    off_by = off.whole if off.kept else off.share
    sentence = (
        f"the statistics of the batch at layer {off.layer!r} follow from the gradient, and those that came with the "
        f"update are off from these by {off_by:.1g} of its deviation"
    )
    if off.kept:
        said = f"{sentence}, as rounded ones are; images that rest on them are not taken for known."
        return Finding(messages=(f"{said[0].upper()}{said[1:]}",))
    if off.rounded:
        return _left_out(f"{sentence}; rounding may make as much, so that they tell nothing", contradicts=False)
    if doubted:
        return _left_out(f"{sentence}: {_OR_STEPS}", contradicts=False)
    return _left_out(sentence)


def _left_out(sentence: str, contradicts: bool = True) -> Finding:
    said = f"{sentence[0].upper()}{sentence[1:].removesuffix('.')}. {_LEFT_OUT}"
    contradictions = {"batch_norm": sentence} if contradicts else {}
    return Finding(contradictions=contradictions, messages=(said,), buffers_left_out=True)

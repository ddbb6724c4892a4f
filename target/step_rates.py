"""The learning rate of each local step, as the visits of a weight delta show it, held against the facts."""

from __future__ import annotations

from collections.abc import Sequence

from ..capture import CapturedUpdate, Provenance, read
from ..peeling.step_sizes import StepSizes
from .finding import Finding

_SOURCE = "the derivatives by the logits of each local step, with the loss of the facts"
_NAMED = 4


def check_rates(update: CapturedUpdate, sizes: StepSizes | None, *, known: bool) -> Finding:
    """Whether every step was as large as the one learning rate of the facts has it.

    Args:
        update: A weight delta as it is attacked.
        sizes: What its steps show; None where they show nothing.
        known: Whether the images are known, so that no step has to be retraced for them.
    """
    local = update.facts.local
    if sizes is None or local is None or local.learning_rate.value is None:
        return Finding()
    rate = local.learning_rate.value
    shown = [rate * one for one in sizes.rates]
    if sizes.constant:
        # A delta that was scaled down as a whole, as clipping does, has smaller steps all alike.
        if sizes.as_told or update.defences:
            return Finding()
        return _another(update, sum(shown) / len(shown))
    whose = "" if sizes.clients == 1 else f" (first all {sizes.clients} clients' first steps)"
    sentence = (
        f"the local steps were as large as at learning rates of {_listed(shown)}{whose}, and the facts say {rate:.3g} "
        "for each of them, as where the learning rate, the momentum or its variant (Nesterov, dampening) is another, "
        "each step's gradient was clipped, or the loss is a sum over batches of unequal size"
    )
    limit = (
        "The attack retraces all local steps with one learning rate and the momentum of the facts, and they do not "
        "obey these."
    )
    return Finding(
        contradictions={"learning_rate": sentence},
        messages=(f"{sentence[0].upper()}{sentence[1:]}.",),
        limits=() if known else (limit,),
    )


def _another(update: CapturedUpdate, shown: float) -> Finding:
    """All steps have one rate, and another one than the facts."""
    assert update.facts.local is not None
    fact = update.facts.local.learning_rate
    words = f"each local step was as large as at a learning rate of {shown:.3g}"
    if fact.provenance is not Provenance.TOLD:
        return Finding(facts={"learning_rate": read(shown, _SOURCE)}, messages=(f"E{words[1:]}.",))
    sentence = (
        f"{words}, and the facts say {fact.value:.3g}: the rate, the scale or the smoothing of the loss is another, or "
        "the delta was scaled or clipped as a whole"
    )
    return Finding(contradictions={"learning_rate": sentence}, messages=(f"E{sentence[1:]}.",))


def _listed(rates: Sequence[float]) -> str:
    words = [f"{one:.3g}" for one in rates]
    if len(words) > _NAMED:
        return f"{words[0]} to {words[-1]} (between {min(rates):.3g} and {max(rates):.3g})"
    return f"{', '.join(words[:-1])} and {words[-1]}"

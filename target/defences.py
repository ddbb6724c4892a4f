"""What the client says that it did to its update, held against what such a defence leaves in it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..capture import CapturedUpdate, Defence, LabelError, OneLook, as_gradient, is_one_step, is_softmax
from ..capture.labels.final_layer import FinalLayer
from .final_layer import softmax_layer
from .finding import Finding
from .signatures import is_pruned, is_rounded, pruning_slack

# Noise below this share of the final layer's gradient is that of low precision.
_NOTICED = 0.01
# Smaller tensors tell no rounding.
_FEWEST_VALUES = 256
# How far beyond what it may be a norm or a share must lie.
_BEYOND, _SHORT = 1.001, 0.9
_NOISY = ("noise", "dp_sgd")


def check_defences(update: CapturedUpdate, model: nn.Module, look: OneLook | None = None) -> Finding:
    """A defence that shows and that nobody stated, or one that was stated and does not show.

    Args:
        update: What the client sent.
        model: The server's model.
        look: At the final layer, where others ask it too.
    """
    look, layer = look or OneLook(), None
    if is_one_step(update) and (update.local is None or update.local.learning_rate is not None):
        layer = softmax_layer(as_gradient(update, model), model, look)
    # What code of the client's own leaves in an update nobody here knows.
    own = [one.name for one in update.defences if one.is_own]
    limits, found = list(map(_not_allowed_for, own)), list[str]()
    if not own:
        rounded = _is_rounded(update)
        pruned = _pruned(update, layer, rounded)
        found += _unstated(update, layer, rounded, pruned)
        if _is_unclear(update, layer, rounded, pruned) and not _sums_hold_over_steps(update, model, look):
            limits.append(
                f"{_zeros(update):.0%} of the update's entries are zero, and whether units that were closed for some "
                "of the images made them or the client dropped entries does not show: an attacker who is told may see "
                "more."
            )
    found += _absent(update, layer)
    return Finding(contradictions={"defences": "; ".join(found)} if found else {}, limits=tuple(limits))


def _not_allowed_for(name: str) -> str:
    return (
        f"the client's defence {name!r} is code of its own, which the attack takes no account of: an attacker who "
        "knows what it does may see more."
    )


def _pruned(update: CapturedUpdate, layer: FinalLayer | None, rounded: bool) -> bool | None:
    """Whether zeros that nobody stated are those of a threshold; None where that does not show."""
    stated = any(one.name == "prune" for one in update.defences)
    return False if stated or rounded or (layer is not None and layer.clean) else is_pruned(update.gradients)


def _is_unclear(update: CapturedUpdate, layer: FinalLayer | None, rounded: bool, pruned: bool | None) -> bool:
    """Whether nothing tells if ReLUs that were closed for some of the images made the zeros, or pruning."""
    stated = {one.name for one in update.defences} & {"prune", "quantise"}
    if stated or rounded or (layer is not None and layer.clean):
        return False
    clients = update.facts.clients.value
    return (pruned if clients == 1 else is_pruned(update.gradients, clients)) is None


def _sums_hold_over_steps(update: CapturedUpdate, model: nn.Module, look: OneLook) -> bool:
    """Whether the final layer's delta of several steps sums to zero over the classes, as the gradient of each step
    does: what dropped entries would have dropped some of these. Only where rounding leaves enough of it to tell.
    """
    local = update.local
    if local is None or is_one_step(update) or local.weight_decay or not is_softmax(update, model):
        return False
    try:
        layer = look.final_layer(update, model)
    except LabelError:
        return False
    size = float(layer.weight_gradient.square().mean().sqrt())
    rounding = _precision(update) * float(layer.weight.square().mean().sqrt()) * local.steps(update.image_count) ** 0.5
    return layer.noise <= rounding <= _NOTICED * size


def _unstated(update: CapturedUpdate, layer: FinalLayer | None, rounded: bool, pruned: bool | None) -> Iterator[str]:
    names = [one.name for one in update.defences]
    if pruned:
        yield (
            f"{_zeros(update):.0%} of the update's entries are zero and of the others the smallest are missing, as "
            "after pruning, which the facts do not state"
        )
    if rounded and "quantise" not in names:
        yield (
            "the values of the update recur, as after rounding (quantisation, or numbers of low precision), which the "
            "facts do not state"
        )
    if layer is None or layer.clean or pruned or rounded or set(names) & {*_NOISY, "prune", "quantise", "soteria"}:
        return
    size = float(layer.weight_gradient.square().mean().sqrt())
    if layer.noise < _NOTICED * size + _rounding(update, layer):
        return
    # Units that are closed leave the sums as they are.
    if pruned is None and pruning_slack(update.gradients):
        yield (
            f"{_zeros(update):.0%} of the update's entries are zero and the final layer's gradient does not sum to "
            "zero over the classes, as where entries were dropped, which the facts do not state"
        )
    else:
        yield (
            f"the final layer's gradient does not sum to zero over the classes, as with noise of deviation "
            f"{layer.noise:.2g} on each entry, which the facts do not state"
        )


def _is_rounded(update: CapturedUpdate) -> bool:
    """By the entries that are not zero; few of them tell nothing."""
    live = {name: g[g != 0] for name, g in update.gradients.items()}
    return max(map(Tensor.numel, live.values())) >= _FEWEST_VALUES and is_rounded(live)


def _rounding(update: CapturedUpdate, layer: FinalLayer) -> float:
    """What a weight delta over its learning rate carries of the rounding of the weights."""
    if update.local is None or not update.local.learning_rate:
        return 0.0
    return _precision(update) * float(layer.weight.square().mean().sqrt()) / update.local.learning_rate


def _precision(update: CapturedUpdate) -> float:
    """Of the numbers that were sent, relative."""
    return torch.finfo(next(iter(update.gradients.values())).dtype).eps


def _absent(update: CapturedUpdate, layer: FinalLayer | None) -> Iterator[str]:
    stated = update.defences
    for place, one in enumerate(stated):
        later = {other.name for other in stated[place + 1 :]}
        if one.name in _NOISY and one.strength and layer is not None and layer.clean:
            yield (
                f"the facts state {one.name}, and the final layer's gradient sums to zero over the classes, which it "
                "does not with noise"
            )
        # What an average over clients leaves of a rounding or of zeros is neither.
        alone = update.facts.clients.value == 1
        if one.name == "quantise" and alone and not later and _values(update) > 2 ** round(one.strength):
            yield f"the facts state {one.strength:g} bits, and a tensor of the update has more values than that allows"
        if one.name == "prune" and alone and not later and _zeros(update) < _SHORT * one.strength:
            yield f"the facts state that {one.strength:.0%} of the entries were set to zero, and fewer are"
        bound = _bound(one, update)
        if bound is not None and later <= {"prune"} and _norm(update) > _BEYOND * bound:
            yield f"the facts state a norm of at most {bound:g}, and the update's is {_norm(update):.3g}"


def _bound(one: Defence, update: CapturedUpdate) -> float | None:
    """The largest norm that this defence leaves; None where it leaves any."""
    if one.name == "clip":
        return one.strength
    if one.name == "dp_sgd" and one.strength == 0 and one.clip:
        # Of a sum that was divided by fewer than the images that came.
        divisor = update.facts.sampling.value.expected or update.image_count
        return math.sqrt(sum(clip**2 for clip in one.clip)) * update.image_count / divisor
    return None


def _norm(update: CapturedUpdate) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in update.gradients.values()))


def _zeros(update: CapturedUpdate) -> float:
    total = sum(g.numel() for g in update.gradients.values())
    return sum(int((g == 0).sum()) for g in update.gradients.values()) / total


def _values(update: CapturedUpdate) -> int:
    return max(len(torch.unique(g)) for g in update.gradients.values())

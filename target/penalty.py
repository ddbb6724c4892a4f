"""A penalty on the weights inside the gradient: it stands in the column sums of the final layer's gradient.

Of cross-entropy alone each column sums to zero over the classes; with ``lambda w`` beside it the sum is ``lambda``
times that of the weights, which the server knows, to about seven digits. Nothing is hidden by such a term.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..capture import CapturedUpdate, OneLook, Penalty, as_gradient, is_one_step, read
from ..capture.labels.final_layer import FinalLayer
from .balance import Balance, find_balances
from .final_layer import softmax_layer
from .finding import Finding

# What the fitted penalty may leave of the column sums where rounding is not all that is left.
_EXPLAINED = 0.1
_FEWEST_COLUMNS = 16
_FEWEST_LAYERS = 2
# By how much both kinds together must fit better than either alone.
_BOTH = 5.0
# A factor is taken for the round number that lies within so many deviations.
_DEVIATIONS = 5.0
_DIGITS = (1, 2, 3, 4)
# A told factor that differs by more, relatively, is contradicted.
_SAME = 1e-2


def check_penalty(update: CapturedUpdate, model: nn.Module, look: OneLook | None = None) -> Finding:
    """The penalty as the update shows it, in place of what was told or assumed where they differ.

    Args:
        update: What the client sent.
        model: The server's model.
        look: At the final layer, where others ask it too.
    """
    fact, local = update.facts.penalty, update.local
    if not is_one_step(update) or (local is not None and local.learning_rate is None):
        return Finding()
    bare = as_gradient(update.stating(penalty=read(Penalty(), "left in for the check")), model)
    layer = softmax_layer(bare, model, look or OneLook())
    last = None if layer is None else fit_penalty(layer)
    balances = find_balances(bare, model)
    found = last or _common(balances)
    if found is None:
        if fact.value and layer is not None and layer.clean and _weight(layer) not in fact.value.spared:
            return Finding(contradictions={"penalty": _NOT_THERE})
        return Finding()
    spared = _spared(model, layer, last, balances, found)
    found = replace(found, spared=spared)
    if _same(found, fact.value):
        return Finding()
    said = "" if fact.assumed else ", whatever the client says"
    message = (
        f"The gradient holds a penalty, or weight decay, of {_words(found)}{said}: so say sums over its entries that "
        "would be zero without. It is subtracted, and a layer that shows no such sum is matched only in what a penalty "
        "cannot change."
    )
    source = "the final layer's column sums" if last else "the layers in front of batch norm"
    return Finding(facts={"penalty": read(found, source)}, messages=(message,))


_NOT_THERE = (
    "the final layer's gradient sums to zero over the classes, which it would not do with a penalty on the weights of "
    "that layer"
)


def _words(penalty: Penalty) -> str:
    parts = ((penalty.l2, "the weights (L2)"), (penalty.l1, "their signs (L1)"))
    words = " and ".join(f"{value:.4g} times {what}" for value, what in parts if value)
    return words + (f", {len(penalty.spared)} tensors spared" if penalty.spared else "")


def _same(one: Penalty, other: Penalty) -> bool:
    close = all(math.isclose(getattr(one, key), getattr(other, key), rel_tol=_SAME) for key in ("l2", "l1"))
    return close and set(one.spared) == set(other.spared)


def _weight(layer: FinalLayer) -> str:
    return f"{layer.name}.weight" if layer.name else "weight"


def _common(balances: Sequence[Balance]) -> Penalty | None:
    """The penalty that several layers show alike; None where they do not."""
    shown = [penalty for balance in balances if (penalty := balance.penalty()) is not None]
    if len(shown) < _FEWEST_LAYERS:
        return None
    found = {}
    for key in ("l2", "l1"):
        values = [value for penalty in shown if (value := getattr(penalty, key))]
        if 2 * len(values) > len(shown):
            middle, spread = median(values), max(values) - min(values)
            found[key] = _rounded(middle, spread / _DEVIATIONS)
    return Penalty(found.get("l2", 0.0), found.get("l1", 0.0)) if found else None


def _spared(
    model: nn.Module, layer: FinalLayer | None, last: Penalty | None, balances: Sequence[Balance], found: Penalty
) -> tuple[str, ...]:
    """The parameters that this penalty leaves alone; those of which nothing is seen go with those of their kind."""
    acted, left = set[str](), set[str]()
    for balance in balances:
        names = balance.spared(found)
        if names is not None:
            left |= set(names)
            acted |= {balance.weight, *balance.small} - set(names)
    if layer is not None:
        (acted if last else left).add(_weight(layer))
        bias = _weight(layer)[: -len("weight")] + "bias"
        if last and layer.bias_gradient is not None:
            (left if _spares_bias(layer, found) else acted).add(bias)
    small = {name for name, weight in model.named_parameters() if weight.ndim == 1}
    if len(small & left) > len(small & acted):
        left |= small - acted
    if layer is not None and not last and layer.bias_gradient is not None:
        left.add(bias)
    return tuple(name for name, _ in model.named_parameters() if name in left)


def fit_penalty(layer: FinalLayer) -> Penalty | None:
    """The penalty that explains the column sums; None where they are zero, or where none does (noise, for example)."""
    if layer.clean or layer.weight.shape[1] < _FEWEST_COLUMNS:
        return None
    sums = layer.weight_gradient.sum(dim=0)
    weights, signs = layer.weight.sum(dim=0), layer.weight.sign().sum(dim=0)
    found: list[tuple[float, Penalty]] = []
    for columns in ((weights,), (signs,), (weights, signs)):
        factors, left = _fit(sums, columns)
        if min(factors) > 0:
            l2 = factors[0] if columns[0] is weights else 0.0
            l1 = factors[-1] if columns[-1] is signs else 0.0
            found.append((left * (_BOTH if len(columns) > 1 else 1), Penalty(l2, l1)))
    left, penalty = min(found, key=lambda one: one[0], default=(math.inf, Penalty()))
    explained = _without(layer, penalty).clean or left <= _EXPLAINED * float(sums.norm())
    return penalty if penalty and explained else None


def _fit(sums: Float[Tensor, " column"], columns: Sequence[Tensor]) -> tuple[list[float], float]:
    """Least squares, each factor as the round number it is where one is near enough, and what is left."""
    matrix = torch.stack(list(columns), dim=1)
    factors = torch.linalg.lstsq(matrix, sums[:, None], driver="gelsd").solution[:, 0]
    left = float((matrix @ factors - sums).norm())
    inverse = torch.linalg.pinv(matrix.T @ matrix)
    deviations = (inverse.diagonal().clamp_min(0) / max(len(sums) - len(columns), 1)).sqrt() * left
    return [_rounded(float(f), float(d)) for f, d in zip(factors, deviations, strict=True)], left


def _rounded(value: float, deviation: float) -> float:
    for digits in _DIGITS:
        near = float(f"{value:.{digits - 1}e}")
        if abs(value - near) <= _DEVIATIONS * deviation:
            return near
    return value


def _without(layer: FinalLayer, penalty: Penalty) -> FinalLayer:
    return replace(layer, weight_gradient=layer.weight_gradient - penalty.term("", layer.weight))


def _spares_bias(layer: FinalLayer, penalty: Penalty) -> bool:
    """Whether the bias gradient sums to zero although the penalty would not let it."""
    assert layer.bias_gradient is not None
    with_it = float(penalty.term("", layer.bias).sum())
    return abs(float(layer.bias_gradient.sum())) < 0.5 * abs(with_it)

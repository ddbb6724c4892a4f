"""Which loss a client's callable is.

A name proves nothing: a foreign function may be called ``cross_entropy``. So a callable is recognised by being torch's
own, and any other by its derivative at the client's own outputs, which is all of a loss that a gradient holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .facts import CROSS_ENTROPY, Fact, Reduction, told
from .losses import BINARY, KNOWN_LOSSES, MSE, NLL, KnownLoss

FOREIGN = "foreign: "
"""Begins the name of a loss that the attack cannot evaluate."""

# A derivative that differs by more, relatively, is that of another loss.
_SAME = 1e-4
# Numbers that a derivative must hold before a factor may be read off it too.
_FEWEST = 3
_LONGEST_NAME = 100


def loss_facts(loss: Callable[..., Any], source: str = "the client") -> dict[str, Fact[Any]] | None:
    """Loss, reduction and smoothing where the callable is torch's own; None where it is not.

    Args:
        loss: ``loss(outputs, labels)``: a function of ``torch.nn.functional``, a partial of it, or a module.
        source: For the record.
    """
    if isinstance(loss, functools.partial):
        inner = loss_facts(loss.func, source)
        if inner is None or loss.args or loss.keywords.keys() - {"reduction", "label_smoothing"}:
            return None
        return _stated(inner["loss"].value, source, **loss.keywords)
    for function, name in _FUNCTIONS.items():
        if loss is function:
            return _stated(name, source)
    name = _MODULES.get(type(loss), "")
    # Hooks, weights of classes and classes that are left out make another loss of it.
    plain = isinstance(loss, nn.Module) and not (loss._forward_hooks or loss._forward_pre_hooks)
    special = (getattr(loss, key, None) is not None for key in ("weight", "pos_weight"))
    if not name or not plain or any(special) or getattr(loss, "ignore_index", -100) != -100:
        return None
    return _stated(name, source, loss.reduction, getattr(loss, "label_smoothing", 0.0))  # type: ignore[attr-defined]


def _stated(
    name: str, source: str, reduction: str = "mean", label_smoothing: float = 0.0
) -> dict[str, Fact[Any]] | None:
    if reduction not in list(Reduction):
        return None
    return {
        "loss": told(name, source),
        "reduction": told(Reduction(reduction), source),
        "loss_scale": told(1.0, source),
        "label_smoothing": told(float(label_smoothing), source),
    }


_FUNCTIONS: Mapping[Callable[..., Any], str] = {
    F.cross_entropy: CROSS_ENTROPY,
    F.nll_loss: NLL,
    F.binary_cross_entropy_with_logits: BINARY,
    F.binary_cross_entropy: "binary_cross_entropy",
    F.mse_loss: MSE,
}
_MODULES: Mapping[type, str] = {
    nn.CrossEntropyLoss: CROSS_ENTROPY,
    nn.NLLLoss: NLL,
    nn.BCEWithLogitsLoss: BINARY,
    nn.BCELoss: "binary_cross_entropy",
    nn.MSELoss: MSE,
}


def state_loss(
    loss: Callable[..., Any], value: Tensor, outputs: object, labels: Tensor, source: str = "the client"
) -> dict[str, Fact[Any]]:
    """The facts on the loss of a client that called it: by what it is, or else by what it did.

    Args:
        loss: ``loss(outputs, labels)``.
        value: What it gave; its graph is kept.
        outputs: Of the model, for the client's batch.
        labels: The client's.
        source: For the record.
    """
    found = loss_facts(loss, source)
    if found is not None:
        return found
    derivative = None
    if isinstance(outputs, Tensor) and outputs.requires_grad and value.requires_grad:
        (derivative,) = torch.autograd.grad(value, outputs, retain_graph=True, allow_unused=True)
    if derivative is None:
        return {"loss": told(f"{FOREIGN}{_name(loss)}", source)}
    assert isinstance(outputs, Tensor)
    return observed_loss_facts(loss, outputs, labels, derivative, source)


def _name(loss: Callable[..., Any]) -> str:
    return str(getattr(loss, "__name__", type(loss).__name__))[:_LONGEST_NAME]


def observed_loss_facts(
    loss: Callable[..., Any], outputs: Tensor, labels: Tensor, derivative: Tensor, source: str = "the client"
) -> dict[str, Fact[Any]]:
    """What a callable that is not torch's own is: the known loss whose derivative by the outputs it has, up to a factor
    and, for cross-entropy, smoothed labels; else a foreign one.

    Args:
        loss: The callable; only its name is taken from it.
        outputs: Of the model, for the client's batch.
        labels: The client's.
        derivative: Of the callable's value by ``outputs``.
        source: For the record.
    """
    foreign = {"loss": told(f"{FOREIGN}{_name(loss)}", source)}
    given = outputs.detach().double()
    if derivative.shape != given.shape or given.ndim != 2 or not _fits(given, labels):
        return foreign
    wanted = derivative.detach().double()
    for name, known in KNOWN_LOSSES.items():
        if given.shape[1] == 1 and not known.elementwise:
            continue  # of a single output a softmax says nothing
        parts = [_derivative(known, given, labels, 0.0)]
        if known.smooths and given.shape[1] > 1:
            # Affine in the smoothing: the difference between all of it and none.
            parts.append(_derivative(known, given, labels, 1.0) - parts[0])
        found = _factors(wanted, parts, len(given), given.numel())
        if found is not None:
            factor, smoothing = found
            return _in_facts(name, factor, smoothing, given.shape, source)
    return foreign


def _fits(outputs: Tensor, labels: Tensor) -> bool:
    if labels.is_floating_point():
        return labels.shape == outputs.shape
    least, most = int(labels.min()), int(labels.max())
    return labels.shape == outputs.shape[:1] and least >= 0 and (outputs.shape[1] == 1 or most < outputs.shape[1])


def _derivative(known: KnownLoss, outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    at = outputs.clone().requires_grad_()
    try:
        with torch.enable_grad():
            (found,) = torch.autograd.grad(known.per_image(at, labels, smoothing).mean(), at)
    except RuntimeError:
        # Such as probabilities that are none.
        return torch.full_like(outputs, torch.nan)
    return found


def _factors(wanted: Tensor, parts: list[Tensor], images: int, numbers: int) -> tuple[float, float] | None:
    """By what the known derivative is multiplied, and the smoothing; None where that does not give the wanted one."""
    if not all(bool(torch.isfinite(part).all()) for part in parts):
        return None
    size = float(wanted.norm())
    # One image's derivative is that of many losses, up to a number.
    free = images > 1 and numbers >= _FEWEST * len(parts) + images
    for columns in (parts[:1], parts):
        columns = [column for column in columns if float(column.norm()) > 0]
        if not columns or size == 0:
            return None
        matrix = torch.stack([column.flatten() for column in columns], dim=1)
        solution = torch.linalg.lstsq(matrix, wanted.flatten()[:, None], driver="gelsd").solution
        left = float((matrix @ solution - wanted.flatten()[:, None]).norm())
        factor = float(solution[0])
        smoothing = float(solution[1]) / factor if len(columns) > 1 and factor else 0.0
        usual = min(abs(factor - 1), abs(factor / images - 1)) < _SAME and len(columns) == 1
        if left <= _SAME * size and factor > 0 and 0 <= smoothing < 1 and (free or usual):
            return factor, round(smoothing, 4)
    return None


def _in_facts(name: str, factor: float, smoothing: float, shape: torch.Size, source: str) -> dict[str, Fact[Any]]:
    """A factor in words of the record: a mean, a sum, or a mean with a scale."""
    images = shape[0] * (shape[1] if KNOWN_LOSSES[name].elementwise else 1)
    near = next((number for number in (1.0, float(images)) if abs(factor / number - 1) < _SAME), None)
    reduction = Reduction.SUM if near == images and images > 1 else Reduction.MEAN
    scale = factor if near is None else 1.0
    return {
        "loss": told(name, source),
        "reduction": told(reduction, source),
        "loss_scale": told(scale, source),
        "label_smoothing": told(smoothing, source),
    }

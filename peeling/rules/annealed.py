"""The input of a segment to within a few units of its rectifiers, from nothing: by soft rectifiers that grow hard.

With hard rectifiers a descent gets stuck, since gradients of parameters jump where a unit changes sides and say nothing
of where it should be. A rectifier ``t log(1 + exp(z / t))`` has a derivative of the same softness t, and all that is
told is smooth in the input. Its solution for one t is a start for a smaller one (Levenberg-Marquardt, each step by
conjugate gradients); no decoder is needed for the first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .linearised import levenberg_marquardt
from .segment import Segment

# Softness as a share of what the ends' values are, root mean square, with steps and iterations of each.
_STAGES = (
    (0.5, 3, 40),
    (0.25, 3, 40),
    (0.12, 3, 40),
    (0.06, 2, 60),
    (0.025, 2, 80),
    (0.01, 2, 80),
    (0.004, 2, 100),
    (0.002, 2, 100),
)
# Of gradients that depend on units that are not known, against the others.
_SOFTENED = 0.3
_LEAST = -30.0
# Share of open units' values that the first input has.
_START = 0.7

ITERATIONS = sum(steps * iterations for _, steps, iterations in _STAGES)
"""Of conjugate gradients, each with two evaluations."""


def annealed(segment: Segment) -> Tensor:
    """The input, up to an error of a few hundredths."""
    size = torch.stack([end.target[end.is_open].square().mean().sqrt() for end in segment.ends]).mean()
    found = _start(segment)
    for softness, steps, iterations in _STAGES:
        softened = softness * float(size)

        def residual(entering: Tensor, softened: float = softened) -> Tensor:
            return _residual(segment, entering, softened)

        found = levenberg_marquardt(residual, found, steps, iterations)
    return found


def _start(segment: Segment) -> Tensor:
    """Where the input has the form of an end, as a skip passes it on, that one's values; else zeros."""
    for end in segment.ends:
        if end.target.shape == segment.shape:
            return _START * end.target
    return torch.zeros(segment.shape)


def _residual(segment: Segment, entering: Tensor, softness: float) -> Tensor:
    def rectify(_: str, value: Tensor) -> Tensor:
        # Numbers too small for float32's usual ones would be slow.
        return softness * F.softplus((value / softness).clamp_min(_LEAST))

    values, gradients = segment.told(entering, rectify)
    length = torch.stack([end.target.square().sum() for end in segment.ends]).sum().sqrt()
    parts = [(-entering).clamp_min(0) / length]
    for end, value in zip(segment.ends, values, strict=True):
        parts.append(torch.where(end.is_open, value - end.target, value.clamp_min(0)) / length)
    for one, gradient in zip(segment.given, gradients, strict=True):
        weight = (_SOFTENED if one.softened or one.gradient.dim() == 1 else 1.0) / one.gradient.norm()
        parts.append((gradient - one.gradient) * weight)
    return torch.cat([part.flatten() for part in parts])

"""L-BFGS on many images at once, each with a history and a line search of its own.

One line search over a batch waits for the image that is hardest, and all images are held back by it. Here each image's
descent is a sequence of its own, that asks for the loss and the derivative at one point after another; what all of them
ask for is evaluated as one batch, from which an image that has ended drops out.

The line search is that for losses with kinks by Lewis and Overton, *Nonsmooth optimization via quasi-Newton methods*,
Mathematical Programming 2013: the step is halved or doubled until the loss falls enough and the derivative along it has
risen. Inside a bracket the next step is the minimum of the cubic through both ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# An image has ended where so many iterations leave more than this share of its loss; and where so many do below the
# loss at which what is left is noise.
_PATIENCE, _LEFT = 20, 0.97
_PATIENCE_IN_NOISE, _LEFT_IN_NOISE = 10, 0.95
# Pairs of steps and changes of the derivative that the curvature is read off.
_HISTORY = 20
# The loss falls by this share of what the derivative promises; the derivative rises to that share of itself.
_FALLS, _RISES = 1e-4, 0.9
# Of a bracket, how near its ends the next step may be; and the most steps that are tried.
_INSIDE, _TRIES = 0.1, 12

Asked = Generator[Tensor, tuple[float, Tensor], None]
"""Points at which the loss and its derivative are asked for."""


@dataclass(frozen=True)
class Descended:
    """Where the images ended."""

    images: Float[Tensor, "image ..."]
    loss: Float[Tensor, " image"]
    evaluations: Int[Tensor, " image"]
    """Of each image's loss with its derivative."""


def descend(
    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    start: Float[Tensor, "image ..."],
    most_evaluations: int,
    noise: Float[Tensor, " image"],
    on_evaluation: Callable[[int, Tensor], None] | None = None,
) -> Descended:
    """The images at the least loss that was found for each.

    Args:
        evaluate: Given numbers of images and as many candidates for them, each one's loss and its derivative.
        start: Where each begins; a batch that is one thing to the loss may stand for an image.
        most_evaluations: Of single images, all of them together.
        noise: The loss of each image that what is looked for has itself: below it there is little to be gained.
        on_evaluation: Called with the number of evaluations of single images so far, and the images.
    """
    best, loss = start.clone(), torch.full((len(start),), math.inf, dtype=torch.float64)
    count = torch.zeros(len(start), dtype=torch.long)
    descents = [_descent(one, float(least)) for one, least in zip(start, noise, strict=True)]
    asked = {index: next(descent) for index, descent in enumerate(descents)}
    while asked and int(count.sum()) + len(asked) <= most_evaluations:
        which = torch.tensor(list(asked))
        values, derivatives = evaluate(which, torch.stack(list(asked.values())))
        count[which] += 1
        following = dict[int, Tensor]()
        for place, index in enumerate(asked):
            value = float(values[place])
            if value < float(loss[index]):
                best[index], loss[index] = asked[index], value
            try:
                following[index] = descents[index].send((value, derivatives[place]))
            except StopIteration:
                continue
        asked = following
        if on_evaluation is not None:
            on_evaluation(int(count.sum()), best)
    return Descended(best, loss, count)


def _descent(start: Tensor, noise: float) -> Asked:
    """One image's descent; it returns where nothing is gained any more."""
    point = start
    value, derivative = yield point
    losses, steps, changes = [value], list[Tensor](), list[Tensor]()
    while math.isfinite(value) and value > 0:
        direction = _direction(derivative, steps, changes)
        slope = float((direction * derivative).sum())
        if not slope < 0:
            steps, changes = [], []
            direction, slope = -derivative, -float(derivative.square().sum())
        # Without a history, the length at which a square that is zero at its least ends.
        first = 1.0 if steps else 2 * value / max(-slope, 1e-300)
        found = yield from _line_search(point, value, direction, slope, first)
        if found is None:
            if not steps:
                return
            steps, changes = [], []
            continue
        moved, value, after = found
        step, change = moved - point, after - derivative
        if float((step * change).sum()) > 1e-10 * float(step.norm() * change.norm()):
            steps, changes = [*steps, step][-_HISTORY:], [*changes, change][-_HISTORY:]
        point, derivative = moved, after
        losses.append(value)
        patience, left = (_PATIENCE_IN_NOISE, _LEFT_IN_NOISE) if value < noise else (_PATIENCE, _LEFT)
        if len(losses) > patience and not value <= left * losses[-1 - patience]:
            return


def _direction(derivative: Tensor, steps: list[Tensor], changes: list[Tensor]) -> Tensor:
    """Minus the derivative, by the inverse of the curvature that was seen (the two loops of Nocedal)."""
    direction, shares = -derivative, list[Tensor]()
    for step, change in zip(reversed(steps), reversed(changes), strict=True):
        share = (step * direction).sum() / (step * change).sum()
        direction = direction - share * change
        shares.append(share)
    if steps:
        direction = direction * (steps[-1] * changes[-1]).sum() / changes[-1].square().sum()
    for step, change, share in zip(steps, changes, reversed(shares), strict=True):
        direction = direction + step * (share - (change * direction).sum() / (step * change).sum())
    return direction


def _line_search(
    point: Tensor, value: float, direction: Tensor, slope: float, first: float
) -> Generator[Tensor, tuple[float, Tensor], tuple[Tensor, float, Tensor] | None]:
    """A point along the direction, with its loss and derivative; None where the loss falls nowhere."""
    low, high, step = (0.0, value, slope), None, first
    least: tuple[Tensor, float, Tensor] | None = None
    for _ in range(_TRIES):
        moved = point + step * direction
        reached, derivative = yield moved
        along = float((direction * derivative).sum())
        if reached < value and (least is None or reached < least[1]):
            least = moved, reached, derivative
        if not reached <= value + _FALLS * step * slope:
            high = step, reached, along
        elif along < _RISES * slope:
            low = step, reached, along
        else:
            return moved, reached, derivative
        step = 2 * low[0] if high is None else _between(low, high)
    return least


def _between(low: tuple[float, float, float], high: tuple[float, float, float]) -> float:
    """The minimum of the cubic through two ends of a bracket, or its middle."""
    (start, first, rise), (end, last, fall) = low, high
    length = end - start
    middle = start + length / 2
    if not math.isfinite(last) or not math.isfinite(fall):
        return middle
    slope = rise + fall - 3 * (last - first) / length
    square = slope * slope - rise * fall
    if square < 0:
        return middle
    root = math.sqrt(square)
    bottom = fall - rise + 2 * root
    found = end - length * (fall + root - slope) / bottom if bottom != 0 else middle
    inside = _INSIDE * length
    return min(max(found, start + inside), end - inside)

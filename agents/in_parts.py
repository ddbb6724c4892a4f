"""A large batch in parts: the graph of one part at a time, and the derivative as of the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Pieces:
    """What a part of a batch comes to."""

    summed: tuple[Tensor, ...]
    """Adds up over the parts, such as the gradients of a loss that is a sum over images."""
    joined: tuple[Tensor, ...]
    """Follows each other along the first dimension, such as the features of each image."""


# Of the images whose graph is held at once where a batch is judged: two of 224 px, all of a small batch.
_JUDGED_PIXELS = 2 * 224 * 224

Run = Callable[[Tensor, slice, bool], Pieces]
"""Given images, which rows of the batch they are, and whether the pieces are to have a derivative by the images."""


def judged_at_once(image_shape: Sequence[int], at_once: int = 0) -> int:
    """How many images whoever judges a batch holds the graph of: it lives beside the agents, and judges once.

    Args:
        image_shape: Channels, height, width.
        at_once: Of an agent; 0: the whole batch.
    """
    most = max(1, _JUDGED_PIXELS // (image_shape[-2] * image_shape[-1]))
    return min(at_once or most, most)


def in_parts(images: Float[Tensor, "batch channel height width"], at_once: int, run: Run) -> Pieces:
    """The pieces of the whole batch, with the graph of ``at_once`` images held at most.

    Going forward each part leaves its pieces alone; going back its graph is made once more and let go (Chen et al.,
    *Training Deep Nets with Sublinear Memory Cost*, 2016, over images instead of layers). Sums are in another order
    than over the whole batch, so that results are equal to rounding.

    Args:
        images: Of the whole batch.
        at_once: At least 1.
        run: The pieces of some of them. No image may depend on another.
    """
    rows = [slice(begin, min(begin + at_once, len(images))) for begin in range(0, len(images), at_once)]
    layout: list[int] = []
    found = _InParts.apply(images, rows, run, layout)
    return Pieces(found[: layout[0]], found[layout[0] :])


class _InParts(torch.autograd.Function):
    """See `in_parts`."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, rows: Sequence[slice], run: Run, layout: list[int]) -> tuple[Tensor, ...]:
        summed, joined = list[Tensor](), list[list[Tensor]]()
        for part in rows:
            with torch.enable_grad():
                pieces = run(images[part].detach(), part, False)
            values = [value.detach() for value in pieces.summed]
            summed = [a + b for a, b in zip(summed, values, strict=True)] if summed else values
            joined.append([value.detach() for value in pieces.joined])
        whole = [torch.cat(values) for values in zip(*joined, strict=True)]
        layout.append(len(summed))
        ctx.rows, ctx.run, ctx.count = rows, run, len(summed)
        ctx.lengths = [[len(value) for value in values] for values in joined]
        ctx.save_for_backward(images)
        return (*summed, *whole)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        (images,) = ctx.saved_tensors
        begins = [0] * len(cotangents[ctx.count :])
        derivatives = []
        for part, lengths in zip(ctx.rows, ctx.lengths, strict=True):
            of_rows = []
            for k, (whole, length) in enumerate(zip(cotangents[ctx.count :], lengths, strict=True)):
                of_rows.append(whole[begins[k] : begins[k] + length])
                begins[k] += length
            derivatives.append(_derivative(ctx.run, images[part], part, (*cotangents[: ctx.count], *of_rows)))
        return torch.cat(derivatives), None, None, None


def _derivative(run: Run, images: Tensor, part: slice, cotangents: Sequence[Tensor]) -> Tensor:
    """Of the pieces of a part by its images, for the derivatives of a number by these pieces."""
    with torch.enable_grad():
        entered = images.detach().requires_grad_()
        pieces = run(entered, part, True)
        pairs = [
            (value, cotangent)
            for value, cotangent in zip((*pieces.summed, *pieces.joined), cotangents, strict=True)
            if value.requires_grad
        ]
        if not pairs:
            return torch.zeros_like(images)
        values, weights = zip(*pairs, strict=True)
        found = torch.autograd.grad(values, entered, weights, allow_unused=True)[0]
    return torch.zeros_like(images) if found is None else found

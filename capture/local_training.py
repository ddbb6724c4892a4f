"""How a client trained before it sent its weights: what the server must know, or guess, to retrace its steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import UpdateError

MOST_LOCAL_STEPS = 10_000
"""More are refused: an update file may come from anyone, and the attack makes each of them."""


@dataclass(frozen=True)
class LocalTraining:
    """Local training by stochastic gradient descent, as ``torch.optim.SGD`` does it, on the mean loss of each batch.

    ``v <- momentum v + (dL/dw + weight_decay w)`` (v = the first gradient at the first step), ``w <- w - lr v``.

    Raises:
        UpdateError: A setting with which nothing is trained, in one sentence.
    """

    learning_rate: float | None
    """The client's; None when the server does not know it and the attack has to estimate it."""
    epochs: int = 1
    """Passes over the client's images."""
    batch_size: int | None = None
    """Images in each step; None for all images in one batch. The last batch of an epoch may be smaller."""
    momentum: float = 0.0
    """Of SGD, at least 0 and below 1; without dampening, not Nesterov's."""
    weight_decay: float = 0.0
    """Of SGD: added to the gradient as ``weight_decay`` times the weight."""
    shuffled: bool = False
    """Whether each epoch has an order of its own, which the server does not know; False: the same order each time."""

    def __post_init__(self) -> None:
        rate = self.learning_rate
        if rate is not None and not (_is_number(rate) and 0 < rate < math.inf):
            raise UpdateError(
                f"the client's learning rate is {rate}; it must be finite and above 0, or None when it is not known"
            )
        if type(self.epochs) is not int or self.epochs < 1:
            raise UpdateError(f"the client's local epochs are {self.epochs}; give a whole number of at least 1")
        if self.batch_size is not None and (type(self.batch_size) is not int or self.batch_size < 1):
            raise UpdateError(
                f"the client's local batch size is {self.batch_size}; give a whole number of at least 1, or None for "
                "all images in one batch"
            )
        if not (_is_number(self.momentum) and 0 <= self.momentum < 1):
            raise UpdateError(f"the client's momentum is {self.momentum}; it must be at least 0 and below 1")
        if not (_is_number(self.weight_decay) and 0 <= self.weight_decay < math.inf):
            raise UpdateError(f"the client's weight decay is {self.weight_decay}; it must be a number of at least 0")

    def require_images(self, image_count: int) -> None:
        """Return quietly when so many images can be trained on in this way.

        Raises:
            UpdateError: The local batch is larger than the data, or there are too many steps to retrace.
        """
        if self.batch_size is not None and self.batch_size > image_count:
            raise UpdateError(
                f"the client's local batch size is {self.batch_size} and it has {image_count} images; "
                "give at most that, or None for all images in one batch"
            )
        if self.steps(image_count) > MOST_LOCAL_STEPS:
            raise UpdateError(
                f"the client made {self.steps(image_count):,} local steps; at most {MOST_LOCAL_STEPS:,} can be retraced"
            )

    def steps(self, image_count: int) -> int:
        """Optimiser steps in all, with so many images."""
        return self.epochs * len(self.batches(image_count))

    def batches(self, image_count: int) -> tuple[range, ...]:
        """The images of each step of one epoch, by their place in the order of the epoch."""
        size = min(self.batch_size or image_count, image_count)
        return tuple(range(start, min(start + size, image_count)) for start in range(0, image_count, size))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""The local steps of clients as linear algebra: what each step's gradient adds to the weights that follow it.

SGD with momentum and weight decay is linear: the weights before step t are ``w_t = a_t w_0 - sum_{s<t} k_ts g_s`` with
numbers that depend on the settings alone. A weight delta is therefore a sum of the steps' gradients with known numbers,
and ``(a_T w_0 - w_T) / rate = sum_t c_t g_t`` is a gradient of all visits together, one visit being one image in one
step, in which every step's derivatives count c_t times.

The average over K clients, each of whom began at the same weights, is such a sum too, with ``c_t / K`` for each
client's step: a step's weights follow from the earlier steps of its own client. All first steps stand before all second
ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ..capture import sent_type
from ..capture.local_training import LocalTraining


@dataclass(frozen=True)
class LocalSteps:
    """How many visits each step has, and how its gradient moves the weights."""

    visits: tuple[int, ...]
    """Of each step, in the order of the steps; of several clients each one's first step, then each one's second."""
    rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    clients: int = 1
    """That the delta is the average of; each made as many steps with as many visits."""
    sizes: tuple[float, ...] = ()
    """Learning rate of each of a client's steps over `rate`, where it changed on the way; empty: always the same."""

    @classmethod
    def of(cls, local: LocalTraining, image_count: int, clients: int = 1) -> LocalSteps:
        """The steps that clients say that they made; their learning rate must be known.

        Args:
            local: How each of them trained.
            image_count: Of each of them.
            clients: How many there are.
        """
        assert local.learning_rate is not None
        sizes = tuple(len(batch) for batch in local.batches(image_count) for _ in range(clients))
        return cls(sizes * local.epochs, local.learning_rate, local.momentum, local.weight_decay, clients)

    @property
    def count(self) -> int:
        """Of steps, of all clients."""
        return len(self.visits)

    @property
    def each(self) -> int:
        """Steps of each client."""
        return self.count // self.clients

    def is_first(self, step: int) -> bool:
        """Whether a step is its client's first, whose weights are those that the server sent."""
        return step < self.clients

    @property
    def visit_count(self) -> int:
        """Of all steps together."""
        return sum(self.visits)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The visits of each step, where all stand in the order of the steps."""
        ends = [sum(self.visits[: step + 1]) for step in range(self.count)]
        return tuple(slice(end - size, end) for end, size in zip(ends, self.visits, strict=True))

    @cached_property
    def _own(self) -> Float[Tensor, "time term"]:
        """One client's weights before each step, and after the last: as sums of the first weights and of each step's
        gradient."""
        rows = torch.eye(1 + self.each, dtype=torch.float64)
        weights, velocity, found = rows[0], torch.zeros_like(rows[0]), []
        for step in range(self.each):
            found.append(weights)
            velocity = self.momentum * velocity + rows[1 + step] + self.weight_decay * weights
            weights = weights - self.rate * (self.sizes[step] if self.sizes else 1.0) * velocity
        return torch.stack([*found, weights])

    @cached_property
    def _table(self) -> Float[Tensor, "time term"]:
        """The same of all clients, before each of their steps, and of their average after the last."""
        table = torch.zeros(self.count + 1, self.count + 1, dtype=torch.float64)
        for step in range(self.count):
            nth, client = divmod(step, self.clients)
            table[step, 0] = self._own[nth, 0]
            table[step, 1 + client :: self.clients] = self._own[nth, 1:]
        table[-1, 0] = self._own[-1, 0]
        table[-1, 1:] = self._own[-1, 1:].repeat_interleave(self.clients) / self.clients
        return table

    @property
    def counts(self) -> Float[Tensor, " step"]:
        """How often each step's gradient counts in the sum (``c_t``)."""
        return -self._table[-1, 1:] / self.rate

    def summed(self, before: Tensor, delta: Tensor) -> Tensor:
        """``sum_t c_t g_t`` of one parameter, in the type of the delta.

        Args:
            before: The parameter before the first step.
            delta: What it moved by in all steps, in the average over clients.
        """
        decayed = (float(self._table[-1, 0]) - 1) * before.double().to(delta.device)
        return ((decayed - delta.double()) / self.rate).to(delta.dtype)

    def deviation(self, before: Tensor, summed: Tensor) -> Tensor:
        """Standard deviation of each entry of `summed` from the rounding of what was sent.

        After each step a weight is rounded to its type, the finer the nearer to zero it is; beside that, gradients have
        the rounding of the type that the delta was sent in. Weights are in half precision only where they are numbers
        of such a type themselves: clients train in float32 and send less of it.

        Args:
            before: The parameter before the first step, in any type that holds it.
            summed: What the gradients of all steps make (`summed`), in the type of the delta.
        """
        sent, gradient = sent_type(summed), summed.double()
        start = before.double().to(summed.device)
        after = float(self._table[-1, 0]) * start - self.rate * gradient
        _, exponent = torch.frexp(torch.maximum(start.abs(), after.abs()))
        step = _trained_in(before, sent).eps * torch.exp2(exponent.double() - 1)
        rounded = step * (self.each / (12 * self.clients)) ** 0.5 / self.rate
        own = torch.finfo(sent).eps / 2 * (gradient.square() + gradient.square().mean()).sqrt()
        return (rounded.square() + own.square()).sqrt()

    def weights(self, before: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """The parameter before the step that follows so many gradients.

        Args:
            before: The parameter before the first step.
            gradients: Of the steps so far, each of the mean loss of its own batch.
        """
        kept, *shares = self._table[len(gradients), : 1 + len(gradients)].tolist()
        found = kept * before.double()
        for share, gradient in zip(shares, gradients, strict=True):
            found = found + share * gradient
        return found

    def every(self, before: Tensor, gradients: Sequence[Tensor]) -> Float[Tensor, "step ..."]:
        """The parameter before each of the steps.

        Args:
            before: The parameter before the first step.
            gradients: Of all steps; the last one's is not used.
        """
        return torch.stack([self.weights(before, gradients[:step]) for step in range(self.count)])


def _trained_in(before: Tensor, sent: torch.dtype) -> torch.finfo:
    """The type of weights whose delta was sent in this one."""
    single = torch.finfo(torch.float32)
    if torch.finfo(sent).bits >= single.bits:
        return torch.finfo(sent)
    held = torch.finfo(sent_type(before))
    return held if held.bits < single.bits else single

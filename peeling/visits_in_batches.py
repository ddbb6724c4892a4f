"""The visits of a weight delta told apart where batch norm ran on each step's own statistics.

A visit's features then hang on the other images of its step, so that no visit can be tried by itself. Which visits were
in one step stands in the derivatives: in front of such a batch norm those of one batch add up to zero over all its
places, channel by channel. Of the sums over each visit's own places ``S_v``, known up to a length, there are therefore
as many linear relations as there were steps, each among the visits of one step alone; their coefficients are the
lengths of these visits beside each other. With those the batch is run through the layers in between, whatever its
length: batch norm does not see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import scipy
import torch
from jaxtyping import Float
from torch import Tensor

from .kinds import over_channels
from .layers import relative
from .visits import SURELY, VisitList, VisitsOrdering, is_open

# The sums' weakest directions are relations where they are smaller than the next one by this.
_RELATION = 0.3
# Visits that share a relation have this of the correlation that those of one step have; others have none.
_TOGETHER = 0.5
# What is said to be left where nothing can be compared.
_NOTHING = 1.0


@dataclass(frozen=True)
class Batch:
    """Visits of one step."""

    visits: tuple[int, ...]
    """Places in the list."""
    inverse: Float[Tensor, " visit"]
    """One over the length of each, up to a factor of all of them."""


def batches_apart(visits: VisitList, count: int) -> list[Batch] | None:
    """The batches of a list; None where the derivatives do not show so many.

    Args:
        visits: By the taps of a convolution in front of batch norm on batch statistics.
        count: Of steps.
    """
    sums = visits.cotangents.sum(dim=(2, 3))
    size = visits.cotangents.flatten(1).norm(dim=1)
    total = len(sums)
    if not 1 <= count <= total or total > sums.shape[1] or not bool((size > 0).all()):
        return None
    vectors, values, _ = torch.linalg.svd(sums / size[:, None], full_matrices=False)
    relations = vectors[:, total - count :]
    if count < total and not float(values[total - count]) <= _RELATION * float(values[total - count - 1]):
        return None
    shared = relations @ relations.T
    own = shared.diagonal().clamp_min(1e-300).sqrt()
    together = (shared / own[:, None] / own).abs() > _TOGETHER
    found, left = list[Batch](), set(range(total))
    while left:
        first = min(left)
        members = [visit for visit in sorted(left) if bool(together[first, visit])]
        inverse = shared[members, first] / size[members]
        if not bool((inverse > 0).all()):
            return None
        found.append(Batch(tuple(members), inverse / inverse.mean()))
        left -= set(members)
    return found if len(found) == count else None


@dataclass(frozen=True)
class BatchesOrdering(VisitsOrdering):
    """Two convolutions with batch norm on batch statistics and a ReLU between them, of one client.

    Whatever a step leaves of its features, all of its visits leave.
    """

    def _pairs(
        self,
        front: VisitList,
        back: VisitList,
        at_front: Sequence[int],
        at_back: Sequence[int],
        step: int,
        inverse: Tensor | None,
    ) -> list[tuple[float, int, int]]:
        """See `VisitsOrdering`: batch for batch."""
        lists = [batches_apart(one, self.steps.count) for one in (front, back)]
        sizes = [None if one is None else sorted(len(batch.visits) for batch in one) for one in lists]
        left_over = [[visit for visit in range(len(back.inputs)) if visit not in done] for done in (at_front, at_back)]
        if lists[0] is None or lists[1] is None or any(one != sorted(self.steps.visits) for one in sizes):
            return [(_NOTHING, row, column) for row, column in zip(*left_over, strict=True)]
        fronts, backs = (
            [batch for batch in batches if batch.visits[0] not in done]
            for batches, done in ((lists[0], at_front), (lists[1], at_back))
        )
        convolution = self._so_far(self.first, front, at_front, step)[-1]
        norm = self._norm(back, at_back, step, inverse)
        made = [self._made(front, batch, convolution, norm) for batch in fronts]
        units = is_open(back, SURELY)
        tried = [[_left(one, back, batch, units) for batch in backs] for one in made]
        size = self.steps.visits[step]
        costs = torch.tensor([[left if len(pairs) == size else _NOTHING for left, pairs in row] for row in tried])
        found = list[tuple[float, int, int]]()
        for row, column in zip(*(some.tolist() for some in scipy.optimize.linear_sum_assignment(costs)), strict=True):
            left, pairs = float(costs[row, column]), tried[row][column][1]
            found += [(left, fronts[row].visits[one], backs[column].visits[other]) for one, other in pairs]
        # Batches of unlike sizes, of which no visit is held against another.
        rows, columns = (
            [visit for visit in some if visit not in {pair[at] for pair in found}]
            for at, some in enumerate(left_over, start=1)
        )
        return [*found, *((math.inf, row, column) for row, column in zip(rows, columns, strict=True))]

    def _made(self, front: VisitList, batch: Batch, convolution: Tensor, norm: dict[str, Tensor]) -> Tensor:
        """What a batch's features are, up to its eps: their scale is not known here."""
        inputs = front.inputs[list(batch.visits)] / batch.inverse.reshape(-1, 1, 1, 1)
        entering = self.first.kind.forward([inputs], {"weight": convolution})
        over = (0, 2, 3)
        centred = entering - entering.mean(dim=over, keepdim=True)
        values = centred / centred.square().mean(dim=over, keepdim=True).sqrt().clamp_min(1e-300)
        if "weight" in norm:
            values = values * over_channels(norm["weight"], values)
        if "bias" in norm:
            values = values + over_channels(norm["bias"], values)
        return values.clamp_min(0)


def _left(made: Tensor, back: VisitList, batch: Batch, units: Tensor) -> tuple[float, list[tuple[int, int]]]:
    """What is left of a batch's features at the most by those of another, up to one length, and whose are whose."""
    if len(made) != len(batch.visits):
        return _NOTHING, []
    which = list(batch.visits)
    features = back.inputs[which] / batch.inverse.reshape(-1, 1, 1, 1)
    seen = units[which]
    # Units of all visits tell the one factor; with it each visit is held against each.
    length = (features * seen).flatten(1).norm() / made.flatten(1).norm().clamp_min(1e-300)
    apart = torch.cdist((length * made).flatten(1), features.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    apart = torch.nan_to_num(apart / features.flatten(1).norm(dim=1).clamp_min(1e-300), nan=_NOTHING)
    rows, columns = scipy.optimize.linear_sum_assignment(apart.numpy())
    pairs = list(zip(rows.tolist(), columns.tolist(), strict=True))
    scaled = torch.stack([made[row] for row, _ in pairs]), torch.stack([features[column] for _, column in pairs])
    factor = (scaled[0] * scaled[1]).sum() / scaled[0].square().sum().clamp_min(1e-300)
    left = [relative(factor * one - other, other) for one, other in zip(*scaled, strict=True)]
    return max(left), pairs

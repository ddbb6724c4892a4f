"""The visits of a weight delta told apart: which of the client's steps each was in, and how long its features are.

The taps of a convolution give every visit's input and derivative up to a length (`images_apart`), those of the
convolution in front of it another list of the same visits. A visit of the first step obeys ``h = relu(norm(W x))``
under the weights that the server sent: of all pairs of both lists the visits of that step are those that leave nothing.
The product of input and derivative does not depend on their lengths, so that these visits' gradients, and with them the
weights before the second step, are known; its visits obey those; and so on. The lengths come from the gradient of the
batch norm's shift, which sums up every visit's derivative, as for one gradient.

In the average over several clients all first steps have the weights that were sent. Whose visits are together shows in
the second ones, which obey what the first visits of their own client made of the weights (`visits_by_client`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import scipy
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .kinds import BatchNorm, BatchStatisticsNorm, Convolution
from .layers import relative, sizes
from .local_steps import LocalSteps
from .tap_solution import fit_lengths
from .visits_by_client import divided

# Units up to this share of a visit's root mean square, or so many of its errors, are shut.
_SHUT, _ERRORS = 1e-5, 5.0
# Units that far above that line tell how a visit's features were made.
SURELY = 10.0
# A visit belongs to a step where its pair leaves at most this share, and a third of what visits of later steps leave.
OBEYS, APART = 0.02, 1 / 3
# Passes over all steps, each with the lengths that the one before gave; what a pair may leave without another one.
_PASSES, _EXACT = 4, 1e-5
# Shifts below this share of the deviation are no column of their own.
_FLAT = 1e-12

_Pair = tuple[float, int, int]
"""What a visit leaves of its features, and its place in the list at the front and in the one at the back."""


@dataclass(frozen=True)
class VisitList:
    """What one convolution's taps give: a visit's two factors are known up to a length that they share."""

    inputs: Float[Tensor, "visit channel height width"]
    """Of length 1."""
    cotangents: Float[Tensor, "visit output height width"]
    error: Float[Tensor, " visit"]

    def chosen(self, visits: Sequence[int]) -> VisitList:
        """Some visits, in this order."""
        some = list(visits)
        return VisitList(self.inputs[some], self.cotangents[some], self.error[some])


class Layer(NamedTuple):
    """A convolution with its weight before the first step."""

    kind: Convolution
    weight: Tensor


class Norm(NamedTuple):
    """The batch norm between both convolutions, with its numbers before the first step."""

    kind: BatchNorm | BatchStatisticsNorm
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Ordered:
    """Both lists in the order of the steps."""

    front: VisitList
    back: VisitList
    left: tuple[float, ...]
    """What the worst pair of each step leaves of its features, relative."""
    next_left: tuple[float, ...]
    """What the best pair of the later steps leaves under the same weights, or the best other division among clients;
    infinite for the last step."""

    @property
    def is_exact(self) -> bool:
        """Whether every step's visits leave nothing worth another pass."""
        return max(self.left) <= _EXACT

    @property
    def is_clear(self) -> bool:
        """Whether every step's visits stand out from those of later ones."""
        return all(one <= OBEYS and one <= APART * other for one, other in zip(self.left, self.next_left, strict=True))


@dataclass(frozen=True)
class VisitsOrdering:
    """Two convolutions with a batch norm and a ReLU between them, where one alone reads the other."""

    steps: LocalSteps
    first: Layer
    norm: Norm
    second: Layer
    shift_gradient: Float[Tensor, " channel"]
    """Of all steps together."""

    def ordered(self, front: VisitList, back: VisitList) -> Ordered:
        """The visits in the order of the steps.

        Args:
            front: By the taps of the first convolution.
            back: By those of the second one.
        """
        inverse: Tensor | None = None
        for _ in range(_PASSES):
            found, order = self._once(front, back, inverse)
            inverse = torch.empty(len(order), dtype=torch.float64)
            # With every visit's own weights its length is known better than while most steps were not.
            inverse[order] = self.lengths(found.back)[0]
            if not bool((inverse > 0).all()) or found.is_exact:
                break
        return found

    def _once(self, front: VisitList, back: VisitList, inverse: Tensor | None) -> tuple[Ordered, list[int]]:
        """One pass over the steps, and the order that it came to of the visits at the back."""
        clients = self.steps.clients
        first = sum(self.steps.visits[:clients])
        pairs = sorted(self._pairs(front, back, [], [], 0, inverse))
        chosen, left = pairs[:first], [pairs[first - 1][0]] * clients
        others = [pairs[first][0] if len(pairs) > first else float("inf")] * clients
        rival = float("inf")
        if clients > 1 and self.steps.each > 1:
            chosen, rival = self._by_client(front, back, chosen, inverse)
        at_front, at_back = [one for _, one, _ in chosen], [one for _, _, one in chosen]
        for step in range(clients, self.steps.count):
            size = self.steps.visits[step]
            pairs = sorted(self._pairs(front, back, at_front, at_back, step, inverse))
            left.append(pairs[size - 1][0])
            others.append(min(rival, pairs[size][0] if len(pairs) > size else float("inf")))
            at_front += [one for _, one, _ in pairs[:size]]
            at_back += [one for _, _, one in pairs[:size]]
        return Ordered(front.chosen(at_front), back.chosen(at_back), tuple(left), tuple(others)), at_back

    def _by_client(
        self, front: VisitList, back: VisitList, pairs: Sequence[_Pair], inverse: Tensor | None
    ) -> tuple[list[_Pair], float]:
        """The visits of all first steps, those of each client together, and what the best other division leaves."""
        size = self.steps.visits[0]

        def leaves(some: tuple[int, ...]) -> float:
            own = [*(pairs[one] for one in some), *(pair for one, pair in enumerate(pairs) if one not in some)]
            order = [one for _, one, _ in own], [one for _, _, one in own]
            second = self.steps.clients
            return sorted(self._pairs(front, back, *order, second, inverse))[self.steps.visits[second] - 1][0]

        groups, rival = divided(len(pairs), size, leaves)
        return [pairs[one] for group in groups for one in group], rival

    def left_at_first(self, front: VisitList, back: VisitList) -> list[float]:
        """What each visit leaves of its features under the weights that the server sent, the least first."""
        return [left for left, _, _ in sorted(self._pairs(front, back, [], [], 0, None))]

    def lengths(self, back: VisitList) -> tuple[Float[Tensor, " visit"], float, Float[Tensor, " visit"]]:
        """One over each visit's length, all in the order of the steps; see `fit_lengths`."""
        return fit_lengths(self._columns(back, self.weights(self.second, back)), self.shift_gradient)

    def weights(self, layer: Layer, visits: VisitList) -> Tensor:
        """Of a convolution before each step."""
        steps = self.steps
        gradients = [
            self._gradient(layer, visits, range(len(visits.inputs))[part], count)
            for part, count in zip(steps.slices, steps.counts.tolist(), strict=True)
        ]
        return steps.every(layer.weight, gradients)

    def _gradient(self, layer: Layer, visits: VisitList, which: Sequence[int], count: float) -> Tensor:
        """One step's."""
        some = visits.chosen(which)
        return layer.kind.gradients(some.cotangents / count, [some.inputs], {"weight": layer.weight}, ["weight"])[0]

    def _so_far(self, layer: Layer, visits: VisitList, order: Sequence[int], steps: int) -> list[Tensor]:
        """Weights before each of the first steps, and before the next."""
        gradients: list[Tensor] = []
        found = []
        for step in range(steps + 1):
            found.append(self.steps.weights(layer.weight, gradients))
            if step < steps:
                which = order[self.steps.slices[step]]
                gradients.append(self._gradient(layer, visits, which, float(self.steps.counts[step])))
        return found

    def _columns(self, back: VisitList, weights: Tensor) -> Float[Tensor, "channel visit"]:
        """Each visit's derivative in front of the ReLU, summed over places, with the weights before each step."""
        parts = [
            self.second.kind.cotangents(back.cotangents[part], [back.inputs[part]], {"weight": weight})[0]
            for part, weight in zip(self.steps.slices, weights, strict=True)
        ]
        return (torch.cat(parts) * is_open(back)).sum(dim=(2, 3)).T

    def _pairs(
        self,
        front: VisitList,
        back: VisitList,
        at_front: Sequence[int],
        at_back: Sequence[int],
        step: int,
        inverse: Tensor | None,
    ) -> list[_Pair]:
        """What each visit that is left leaves of its features under the weights before a step, matched one to one."""
        convolution = self._so_far(self.first, front, at_front, step)[-1]
        norm = self._norm(back, at_back, step, inverse)
        rows = [visit for visit in range(len(front.inputs)) if visit not in at_front]
        columns = [visit for visit in range(len(back.inputs)) if visit not in at_back]
        entering = self.first.kind.forward([front.inputs[rows]], {"weight": convolution})
        assert isinstance(self.norm.kind, BatchNorm)
        scale, shift = self.norm.kind.affine(norm)
        scaled, open_units = entering * scale.reshape(1, -1, 1, 1), is_open(back, SURELY)
        costs = torch.tensor(
            [[_left(one, shift, back.inputs[visit], open_units[visit]) for visit in columns] for one in scaled]
        )
        # A visit that has no length, or none of whose units is surely open, obeys nothing.
        costs = torch.nan_to_num(costs, nan=1.0)
        chosen_rows, chosen_columns = scipy.optimize.linear_sum_assignment(costs.numpy())
        return [
            (float(costs[row, column]), rows[row], columns[column])
            for row, column in zip(chosen_rows.tolist(), chosen_columns.tolist(), strict=True)
        ]

    def _norm(self, back: VisitList, order: Sequence[int], step: int, inverse: Tensor | None) -> dict[str, Tensor]:
        """The batch norm's numbers before a step, by the visits of the steps before it."""
        trained = {role: self.norm.tensors[role] for role in ("weight", "bias") if role in self.norm.tensors}
        if step == 0 or "bias" not in trained:
            return self.norm.tensors
        everyone = [*order, *(visit for visit in range(len(back.inputs)) if visit not in order)]
        ordered = back.chosen(everyone)
        weights = self._so_far(self.second, back, order, step)
        # Visits whose step is not known yet are taken to have the weights of this one.
        inverse = self._lengths_so_far(ordered, weights, step) if inverse is None else inverse[everyone]
        open_units = is_open(ordered)
        now, gradients = dict(self.norm.tensors), {role: list[Tensor]() for role in trained}
        for done in range(step):
            part = self.steps.slices[done]
            derivative = self.second.kind.cotangents(
                ordered.cotangents[part], [ordered.inputs[part]], {"weight": weights[done]}
            )[0]
            factor = inverse[part].reshape(-1, 1, 1, 1)
            derivative = derivative * open_units[part] * factor / self.steps.counts[done]
            output = ordered.inputs[part] / factor
            centred = output - now["bias"].reshape(-1, 1, 1)
            gradients["bias"].append(derivative.sum(dim=(0, 2, 3)))
            if "weight" in trained:
                gradients["weight"].append((derivative * centred).sum(dim=(0, 2, 3)) / now["weight"])
            now = now | {role: self.steps.weights(trained[role], gradients[role]) for role in trained}
        return now

    def _lengths_so_far(self, ordered: VisitList, weights: Sequence[Tensor], step: int) -> Tensor:
        """One over each visit's length, with the weights that are known so far."""
        by_step = torch.stack([weights[min(one, step)] for one in range(self.steps.count)])
        return fit_lengths(self._columns(ordered, by_step), self.shift_gradient)[0]

    def scaled(self, back: VisitList, inverse: Tensor) -> VisitList:
        """Each visit with its length."""
        factor = inverse.reshape(-1, 1, 1, 1)
        return replace(back, inputs=back.inputs / factor, cotangents=back.cotangents * factor)


def is_open(visits: VisitList, times: float = 1.0) -> Bool[Tensor, "visit channel height width"]:
    """Units of the ReLU in front; with a larger factor the surest of them."""
    line = times * (_ERRORS * visits.error).clamp_min(_SHUT) * sizes(visits.inputs)
    return visits.inputs > line[:, None, None, None]


def _left(scaled: Tensor, shift: Tensor, features: Tensor, open_units: Tensor) -> float:
    """What is left of a visit's features when those of another are run there, up to the length of either."""
    columns = [scaled[open_units]]
    if float(shift.abs().max()) > _FLAT * float(scaled.abs().max()):
        columns.append(shift.reshape(-1, 1, 1).expand_as(scaled)[open_units])
    fitted = torch.linalg.lstsq(torch.stack(columns, dim=1), features[open_units][:, None]).solution[:, 0]
    found = fitted[0] * scaled
    if len(fitted) > 1:
        found = found + fitted[1] * shift.reshape(-1, 1, 1)
    return relative(found.clamp_min(0) - features, features)

"""What weight gradients in front of the cut tell of what their convolutions read, few as their equations are.

A convolution's weight gradient is linear in its input, with one matrix over the places of all images for every channel
(`rules/equations.py`), where the derivative by its output is known. With fewer equations than places no input follows;
but its projection onto the directions that the matrix has does, exactly, and without any norm's mode. Behind a cut of
ResNet-18 with eight images of 64 px these are 1,187 of 2,048 directions of each of 64 channels. They are of the whole
batch: each is a sum over the places of all images.

A direction that the matrix hardly has is known with the noise over its singular value, and counts by that much less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ...capture import CapturedUpdate
from ..graph import Node
from ..rules import Derivation
from ..rules.convolution_input import equations_of, has_equations, places_of_value
from ..rules.equations import GradientEquations, normal_equations
from ..rules.knowledge import Knowledge
from ..rules.rule import Setting

# Directions whose eigenvalue is a smaller share of the largest are none that the matrix has: it is known to rounding.
_LEAST = 1e-12
# Of a direction's usual number: with that much noise it counts by half.
_HALF = 0.2
# A direction that counts by less is left out.
_COUNTS = 0.1
# Of the operations, what taking one matrix apart may take; and how many that is, for the cube of its size.
_SHARE, _CUBES = 0.1, 10.0


@dataclass(frozen=True)
class Projections:
    """Sums over the places of all images that are known of one value."""

    value: str
    basis: Float[Tensor, "place direction"]
    """Orthogonal directions, each as long as it counts, at most 1."""
    known: Float[Tensor, "direction channel"]
    readers: tuple[str, ...]
    """The convolutions whose gradients tell them."""

    def off(self, values: Float[Tensor, "image channel height width"]) -> Float[Tensor, ""]:
        """Square of what these values leave of the projections, relative to the length of these.

        Args:
            values: Of all images, in the order of the derivation.
        """
        rows = values.permute(0, 2, 3, 1).reshape(len(self.basis), -1)
        return (self.basis.T @ rows - self.known).square().sum() / self.known.square().sum().clamp_min(1e-30)

    def to(self, dtype: torch.dtype, device: torch.device) -> Projections:
        """The same numbers there."""
        return replace(self, basis=self.basis.to(device, dtype), known=self.known.to(device, dtype))


Projected = Callable[[], Sequence[Projections]]
"""Finds them, where they are asked for."""


def find_projections(
    derivation: Derivation, update: CapturedUpdate, image_count: int, operations: float = math.inf
) -> tuple[Projections, ...]:
    """Of every value that is not known and that a convolution reads whose gradient and derivative are.

    Args:
        derivation: What is known.
        update: With the gradients.
        image_count: That the derivation is of.
        operations: Floating-point operations that are allowed; a value whose places are too many for them is left out.
    """
    if update.step_rate is not None:
        return ()  # entries are rounded each to its own weight, and a sum over them has the noise of the coarsest
    setting, known = Setting(derivation.graph, update.gradients, image_count, 1.0), derivation.knowledge
    readers = dict[str, list[Node]]()
    for node in derivation.graph.nodes:
        value = node.inputs[0] if node.inputs else ""
        if known.complete(value) is not None or not has_equations(setting, known, node):
            continue
        if _CUBES * places_of_value(setting, value) ** 3 <= _SHARE * operations:
            readers.setdefault(value, []).append(node)
    found = (_projections(setting, known, value, nodes) for value, nodes in readers.items())
    return tuple(one for one in found if one is not None)


def _projections(setting: Setting, known: Knowledge, value: str, nodes: Sequence[Node]) -> Projections | None:
    equations, noises = list[GradientEquations](), list[float]()
    for node in nodes:
        one, arriving = equations_of(setting, known, node), known.arriving[node.name]
        equations.append(one)
        # Of the derivative as a whole: one image's may be faint, and adds as little error.
        off = float(arriving.deviation.expand_as(arriving.values).norm() / arriving.values.norm().clamp_min(1e-300))
        relative = max(one.rounding, off)
        noises.append(relative * float(one.given.square().mean().sqrt()))
    matrix, right = normal_equations(equations)
    squares, directions = torch.linalg.eigh(matrix)
    kept = squares > _LEAST * squares[-1]
    if not bool(kept.any()):
        return None
    squares, directions = squares[kept], directions[:, kept]
    numbers = (directions.T @ right) / squares[:, None]
    usual = float(numbers.square().mean().sqrt())
    noise = max(*noises, _left(equations, directions @ numbers, len(squares))) / squares.sqrt()
    counts = 1 / (1 + (noise / (_HALF * max(usual, 1e-300))).square())
    chosen = counts >= _COUNTS
    if not bool(chosen.any()):
        return None
    length = counts[chosen].sqrt()
    names = tuple(node.name for node in nodes)
    return Projections(value, directions[:, chosen] * length, numbers[chosen] * length[:, None], names)


def _left(equations: Sequence[GradientEquations], values: Tensor, rank: int) -> float:
    """Noise of each entry of the right sides, by what no input explains; 0 where any is explained."""
    rows = sum(len(one.given) for one in equations)
    left = sum(float((one.given - one.matrix.T @ values).square().sum()) for one in equations)
    return (left / ((rows - rank) * values.shape[1])) ** 0.5 if rows > rank else 0.0

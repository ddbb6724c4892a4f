"""Images in front of a first max-pooling whose output is known: which unit won each window, and pixels that fit.

The loss depends on an image through the units that won alone. Of each window is told: the largest of its units has the
value that is known; no unit is larger than the least of the values of the windows that hold it; and where two windows
that overlap have the same value, one unit that they share won both. The weight gradient of the convolution in front is
made of the winners' patches. Who won is not known beforehand. With a soft maximum ``t log sum exp(y / t)`` over units
that may have won, all of that is smooth in the pixels, and t falls (Levenberg-Marquardt from a decoded start).

That is less than there are pixels: what no winner sees is as smooth as the rest allows, edges spared (the weights of
differences fall with their size, as for total variation). So these images are exact nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..graph import Graph, Node
from ..graph.cost import operations
from ..kinds import Convolution, MaxPool, Needs, Rectifier
from ..rules import Derivation
from ..rules.linearised import levenberg_marquardt

# Softness of the maximum, as a share of what the pooled values are, the weight of smoothness, and steps. Softness has
# to be about as large as the units' errors are: from a decoded start at 0.1 it ends 10 dB lower.
_STAGES = ((0.2, 1.5e-3, 3), (0.1, 1e-3, 5), (0.07, 6e-4, 5), (0.05, 4e-4, 5), (0.035, 3e-4, 4))
_ITERATIONS = 40
# Of the weight gradient, relative, and of what is beyond black or white, against smoothness.
_GRADIENT, _RANGE = 0.1, 3.0
# Differences of neighbouring pixels below that, as a share of the range, are taken for noise.
_EDGE = 0.05
# Two pooled values are the same within so many deviations; one that is as near to zero may be shut.
_SAME, _OPEN = 4.0, 10.0
# Exponents below that are as good as none, and slow in float32; a unit that did not win.
_LEAST, _NEVER = -30.0, -1e4


@dataclass(frozen=True)
class Stem:
    """What lies between the images and a max-pooling whose output is known."""

    graph: Graph
    nodes: tuple[Node, ...]
    """Linear, one after another, with one convolution."""
    pool: MaxPool
    values: Float[Tensor, "image channel height width"]
    """Behind the pooling; zero where no unit of the window was open."""
    deviation: float
    """Of the errors, at most."""
    arriving: Tensor | None
    """The derivative of the loss by them."""
    convolution: str
    gradient: Tensor | None
    """By its weight."""

    @property
    def seen(self) -> float:
        """How many different units won, against the values of pixels that there are: at most that share of what is in
        the images is determined by them."""
        ordered = self.values.flatten(2).sort(dim=2).values
        before = F.pad(ordered[..., :-1], (1, 0))
        winners = int((ordered - before > _SAME * self.deviation).sum())
        return winners / (len(self.values) * math.prod(self.graph.image_shape))


def find_stem(derivation: Derivation, gradients: Mapping[str, Tensor]) -> Stem | None:
    """The stem, where it has that form: linear operations, a rectifier and the pooling.

    Args:
        derivation: What is known.
        gradients: Captured, by parameter.
    """
    graph, known = derivation.graph, derivation.knowledge
    for node in graph.nodes:
        found = known.complete(node.name)
        if not isinstance(node.kind, MaxPool) or found is None or node.kind.ceil or node.kind.dilation != (1, 1):
            continue
        rectifier = graph.by_name.get(node.inputs[0])
        if rectifier is None or not isinstance(rectifier.kind, Rectifier) or rectifier.kind.ceiling != float("inf"):
            continue
        nodes = _line(graph, rectifier.inputs[0])
        convolutions = [one for one in nodes or () if isinstance(one.kind, Convolution)]
        if nodes is None or len(convolutions) != 1:
            continue
        arriving = known.arriving.get(node.name)
        name = graph.gradient_of(convolutions[0], "weight")
        gradient = gradients.get(name) if name is not None else None
        usable = gradient is not None and bool(gradient.any()) and arriving is not None and arriving.complete
        deviation = float(found.deviation.max())
        return Stem(
            graph,
            nodes,
            node.kind,
            torch.where(found.values > _OPEN * deviation, found.values, 0.0).float(),
            deviation,
            arriving.values.float() if arriving is not None and usable else None,
            convolutions[0].name,
            gradient.detach().cpu().float() if gradient is not None and usable else None,
        )
    return None


def _line(graph: Graph, value: str) -> tuple[Node, ...] | None:
    """The operations from the images to a value, where they are linear and one after another."""
    found = list[Node]()
    while value != graph.images:
        node = graph.by_name[value]
        if node.kind.needs is not Needs.NOTHING or len(node.inputs) != 1 or len(node.shape) != 3:
            return None
        found.append(node)
        (value,) = node.inputs
    return tuple(reversed(found))


def winners_operations(stem: Stem) -> float:
    """How many floating-point operations `images_by_winners` takes."""
    one = operations(stem.graph, [stem.nodes[-1].name])
    # A pass forwards and one backwards through the stem and through its gradient for each iteration.
    return 12 * len(stem.values) * one * _ITERATIONS * sum(steps for _, _, steps in _STAGES)


def images_by_winners(
    stem: Stem, start: Float[Tensor, "image channel height width"], lowest: Tensor, highest: Tensor
) -> Float[Tensor, "image channel height width"]:
    """Images whose winners have the values that are known.

    Args:
        stem: With those values.
        start: Images as the model is given them.
        lowest: What black is to the model, ``(channel, 1, 1)``.
        highest: What white is.
    """
    low, high = lowest.float(), highest.float()
    system = _System(stem, low, high)
    found = start.float().maximum(low).minimum(high)
    size = float(stem.values.square().mean().sqrt())
    for softness, smoothness, steps in _STAGES:
        residual = system.residual(softness * size, smoothness, found)
        found = levenberg_marquardt(residual, found, steps, _ITERATIONS)
    return found.maximum(low).minimum(high).double()


def candidates(pool: MaxPool, values: Tensor, size: tuple[int, int], same: float) -> tuple[Tensor, Tensor]:
    """Which units of each window may have won, ``(offset, image, channel, height, width)``, and how large each unit is
    at most.

    Args:
        pool: The pooling.
        values: Behind it.
        size: Height and width in front of it.
        same: By how much two values differ that are the same.
    """
    counts = values.new_full((*values.shape[:2], *size), float("inf"))
    padded = F.pad(counts, _around(pool), value=float("inf"))
    for window in _slices(pool, values.shape):
        padded[window] = padded[window].minimum(values)
    top, left = pool.padding
    most = padded[:, :, top : top + size[0], left : left + size[1]]
    may = (_windows(pool, most, values.shape, -1.0) - values).abs() <= same
    # A unit that is shared by two windows of the same value won both: one that is not shared won neither.
    number = torch.arange(1, size[0] * size[1] + 1, dtype=torch.float32).reshape(1, 1, *size)
    places = _windows(pool, number, values.shape, 0.0)[:, 0, 0]
    height, width = values.shape[2:]
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        first = (slice(0, height - down), slice(max(0, -right), width - max(0, right)))
        second = (slice(down, height), slice(max(0, right), width - max(0, -right)))
        ones, others = places[(slice(None), *first)], places[(slice(None), *second)]
        shared = (ones[:, None] == others[None]) & (ones[:, None] > 0)
        equal = (values[(..., *first)] - values[(..., *second)]).abs() <= same
        equal &= shared.any(dim=1).any(dim=0) & (values[(..., *first)] > 0)
        for window, held in ((first, shared.any(dim=1)), (second, shared.any(dim=0))):
            may[(..., *window)] &= ~equal[None] | held[:, None, None]
    # Two values may be the same by chance, or differ by more than is said: where that leaves none, each unit may.
    return may | (~may.any(dim=0) & (places > 0)[:, None, None]), most


def _around(pool: MaxPool) -> tuple[int, int, int, int]:
    """Padding of both sides, with room for the last windows."""
    return pool.padding[1], pool.padding[1] + pool.kernel[1], pool.padding[0], pool.padding[0] + pool.kernel[0]


def _slices(pool: MaxPool, shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """For each unit of a window, where it is in all of them."""
    height, width = shape[2:]
    return [
        (
            slice(None),
            slice(None),
            slice(down, down + pool.stride[0] * (height - 1) + 1, pool.stride[0]),
            slice(right, right + pool.stride[1] * (width - 1) + 1, pool.stride[1]),
        )
        for down in range(pool.kernel[0])
        for right in range(pool.kernel[1])
    ]


def _windows(pool: MaxPool, values: Tensor, shape: tuple[int, ...], outside: float) -> Tensor:
    padded = F.pad(values, _around(pool), value=outside)
    return torch.stack([padded[window] for window in _slices(pool, shape)])


class _System:
    """What is told of the images, scaled so that the pooled values have length 1."""

    def __init__(self, stem: Stem, low: Tensor, high: Tensor) -> None:
        self.stem, self.low, self.high = stem, low, high
        self.tensors = {node.name: stem.graph.tensors_of(node, torch.empty(0)) for node in stem.nodes}
        self.length = float(stem.values.norm())
        size = stem.nodes[-1].shape
        same = _SAME * stem.deviation + 1e-6 * float(stem.values.max())
        self.may, self.most = candidates(stem.pool, stem.values, (size[1], size[2]), same)
        self.is_open = stem.values > 0

    def pooled(self, images: Tensor, softness: float, weight: Tensor) -> tuple[Tensor, Tensor]:
        """In front of the rectifier, and the soft maximum over those that may have won."""
        value = images
        for node in self.stem.nodes:
            tensors = dict(self.tensors[node.name])
            if node.name == self.stem.convolution:
                tensors["weight"] = weight
            value = node.kind.forward([value], tensors)
        windows = _windows(self.stem.pool, value, tuple(self.stem.values.shape), _NEVER)
        windows = windows.masked_fill(~self.may, _NEVER)
        largest = windows.detach().amax(dim=0)
        shares = ((windows - largest) / softness).clamp_min(_LEAST).exp().sum(dim=0)
        return value, largest + softness * shares.log()

    def residual(self, softness: float, smoothness: float, near: Tensor) -> Callable[[Tensor], Tensor]:
        """Of the images; differences weighed by what they are in some that are near."""
        stem = self.stem
        unit = self.high - self.low
        down, right = self._differences(near / unit)
        tall = F.pad(down, (0, 0, 0, 1)).square().sum(dim=1, keepdim=True)
        edges = (tall + F.pad(right, (0, 1)).square().sum(dim=1, keepdim=True) + _EDGE**2).pow(-0.25)

        def residual(images: Tensor) -> Tensor:
            weight = self.tensors[stem.convolution]["weight"].detach().requires_grad_()
            with torch.enable_grad():
                value, pooled = self.pooled(images, softness, weight)
                parts = [(pooled - stem.values) * self.is_open / self.length]
                parts.append((value - self.most).clamp_min(0) / self.length)
                if stem.gradient is not None:
                    assert stem.arriving is not None
                    arriving = stem.arriving * self.is_open
                    (made,) = torch.autograd.grad(pooled, weight, arriving, create_graph=True)
                    parts.append((made - stem.gradient) * (_GRADIENT / stem.gradient.norm()))
                down, right = self._differences(images / unit)
                parts += [smoothness * down * edges[:, :, :-1], smoothness * right * edges[..., :-1]]
                beyond = (images - self.high).clamp_min(0) + (self.low - images).clamp_min(0)
                parts.append(_RANGE * smoothness * beyond / unit)
                return torch.cat([part.flatten() for part in parts])

        return residual

    @staticmethod
    def _differences(images: Tensor) -> tuple[Tensor, Tensor]:
        return images[:, :, 1:] - images[:, :, :-1], images[..., 1:] - images[..., :-1]

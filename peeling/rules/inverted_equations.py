"""What is told of the input of an inverted block: its known end, and the gradients of all its parameters.

With the derivative behind the block known, each gradient is a function of the input x alone. Where rectifiers are soft,
all of it is smooth in x; with hard ones it is linear in x as long as no unit changes sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph import Graph, Node
from ..kinds import BatchNorm, Convolution, Rectifier, ZeroPadding
from .channel_sums import shift_gradients
from .inverted_block import InvertedBlock
from .rule import Setting

# What a row of a gradient, or a channel, counts at least, as a share of a usual one.
_LEAST = 0.1
# Directions of the input that the first convolution shrinks to less than this share are not stretched further.
_FLAT = 1e-4


@dataclass(frozen=True)
class Told:
    """What an input makes of the block. A gradient is None where there is none to hold it against."""

    outputs: Tensor
    """At the end; behind the depthwise convolution in front of the second rectifier, where that is the end."""
    gradients: tuple[Tensor, ...]
    """Of weights and shifts, as in `Equations.given`."""
    scales: tuple[Tensor, ...]
    """Of the batch norms' weights, as in `Equations.unused`."""
    fronts: tuple[Tensor, Tensor]
    """What enters both rectifiers."""


class Equations:
    """All of them, in one type of numbers.

    Args:
        setting: With the captured gradients.
        block: The operations.
        target: The known end.
        arriving: The derivative by it, and behind a rectifier by its output.
        is_open: Units of the rectifier at the end; None where the end is none.
        dtype: Of the numbers.
    """

    def __init__(
        self,
        setting: Setting,
        block: InvertedBlock,
        target: Tensor,
        arriving: Tensor,
        is_open: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        graph, self._block, self._dtype = setting.graph, block, dtype
        self.target, self._arriving = target.to(dtype), arriving.to(dtype)
        self._is_open = is_open
        weights = [graph.tensors_of(node)["weight"].to(dtype) for node in (block.expand, block.depthwise)]
        self._expand, self._kernel = weights[0].flatten(1), weights[1]
        self._affine = [
            _affine(graph, nodes, dtype) for nodes in ((block.expand, *block.first), (block.depthwise, *block.second))
        ]
        self._ceilings = [_ceiling(node) for node in (block.rectified, block.hidden)]
        self._sides = _sides(block)
        self._behind: Tensor | None = None
        self.size = self.target.square().mean().sqrt() if is_open is None else _size(self.target[is_open])
        if block.project is not None:
            self._project = graph.tensors_of(block.project)["weight"].to(dtype).flatten(1)
            self._last = _affine(graph, (block.project, *block.third), dtype)
            self._by_project = self._arriving * self._last[0]
            self._by_hidden = torch.einsum("bohw,oi->bihw", self._by_project, self._project)
        self.given, self._names = _given(setting, block, dtype)
        self._lengths = [_length(gradient, name) for gradient, name in zip(self.given, self._names, strict=True)]
        self._norms = [_last_norm(nodes) for nodes in (block.first, block.second)]
        self.unused = _scale_gradients(setting, self._norms, dtype)
        self._shapes = [
            {role: tensor.to(dtype) for role, tensor in graph.tensors_of(node).items()} if node is not None else {}
            for node in self._norms
        ]
        self.stretch = _stretch(self._affine[0][0].reshape(-1, 1) * self._expand)

    @property
    def count(self) -> int:
        """Known outputs and entries of gradients."""
        outputs = self.target.numel() if self._is_open is None else int(self._is_open.sum())
        return outputs + sum(gradient.numel() for gradient in self.given)

    def entering(self, stretched: Tensor) -> Tensor:
        """The input, of variables in which the first convolution shrinks no direction much more than others."""
        return torch.einsum("bihw,oi->bohw", stretched, self.stretch)

    def stretched(self, entering: Tensor) -> Tensor:
        """These variables, of an input."""
        undone = torch.linalg.inv(self.stretch.double()).to(self._dtype)
        return torch.einsum("bihw,oi->bohw", entering, undone)

    def told(self, entering: Tensor, softness: float) -> Told:
        """What an input makes of the block, with rectifiers of this softness; 0 is hard."""
        (scale, shift), (scale_2, shift_2) = self._affine
        front = torch.einsum("bihw,oi->bohw", entering, self._expand) * scale + shift
        padded = F.pad(_rectified(front, self._ceilings[0], softness), self._sides)
        stride = self._stride
        front_2 = F.conv2d(padded, self._kernel, stride=stride, groups=len(self._kernel)) * scale_2 + shift_2
        outputs, by_project = front_2, None
        if self._block.project is None:
            assert self._is_open is not None
            before = self._arriving * self._is_open
        else:
            hidden = _rectified(front_2, self._ceilings[1], softness)
            outputs = torch.einsum("bihw,oi->bohw", hidden, self._project) * self._last[0] + self._last[1]
            outputs = outputs + entering if self._block.skip is not None else outputs
            by_project = torch.einsum("bohw,bihw->oi", self._by_project, hidden)
            before = _open(front_2, self._ceilings[1], softness) * self._by_hidden
        by_depthwise = before * scale_2
        behind = self._behind
        if behind is None:
            behind = self._back(by_depthwise, padded.shape[2:])
            # Where the units of the second rectifier are known, it is the same for every input.
            self._behind = behind.detach() if self._block.project is None else None
        first = _open(front, self._ceilings[0], softness) * behind
        found = {
            "expand": torch.einsum("bohw,bihw->oi", first * scale, entering),
            "depthwise": self._by_kernel(padded, by_depthwise),
            "project": by_project,
            "first shift": first.sum((0, 2, 3)),
            "second shift": before.sum((0, 2, 3)),
        }
        gradients = [found[name] for name in self._names]
        fronts = (front, front_2)
        derivatives = (first, before)
        scales = tuple(
            (derivatives[at] * _normalised(fronts[at], self._shapes[at])).sum((0, 2, 3)) for at, _ in self.unused
        )
        return Told(outputs, tuple(one for one in gradients if one is not None), scales, fronts)

    def residual(self, entering: Tensor, softness: float, weight: float) -> Tensor:
        """All that is left, of entries of about the same size.

        Args:
            entering: The input.
            softness: Of rectifiers.
            weight: Of gradients against outputs.
        """
        return torch.cat([part.flatten() for part in self.parts(entering, softness, weight)])

    def parts(self, entering: Tensor, softness: float, weight: float) -> list[Tensor]:
        """The same, outputs and each gradient by itself."""
        told = self.told(entering, softness)
        off = told.outputs - self.target
        if self._is_open is not None:
            ceiling = self._ceilings[1]
            beyond = torch.where(
                self.target > ceiling / 2, (told.outputs - ceiling).clamp_max(0), told.outputs.clamp_min(0)
            )
            off = torch.where(self._is_open, off, beyond)
        gradients = zip(told.gradients, self.given, self._lengths, strict=True)
        return [off / self.size, *(weight * (one - given) / length for one, given, length in gradients)]

    def sides(self, entering: Tensor) -> list[Tensor]:
        """Which units are open, in both rectifiers."""
        fronts = self.told(entering, 0.0).fronts
        return [_open(front, ceiling, 0.0) > 0 for front, ceiling in zip(fronts, self._ceilings, strict=True)]

    @property
    def _stride(self) -> tuple[int, int]:
        kind = self._block.depthwise.kind
        assert isinstance(kind, Convolution)
        return kind.stride

    def _back(self, by_depthwise: Tensor, size: Sequence[int]) -> Tensor:
        """The derivative by what enters the depthwise convolution, without its padding."""
        found = F.conv_transpose2d(by_depthwise, self._kernel, stride=self._stride, groups=len(self._kernel))
        height, width = size
        found = F.pad(found, (0, width - found.shape[3], 0, height - found.shape[2]))
        left, right, top, bottom = self._sides
        return found[:, :, top : height - bottom, left : width - right]

    def _by_kernel(self, padded: Tensor, by_depthwise: Tensor) -> Tensor:
        """The gradient of the depthwise kernel, tap by tap."""
        (down, across), (rows, columns) = self._stride, by_depthwise.shape[2:]
        height, width = self._kernel.shape[2:]
        taps = [
            padded[:, :, top : top + (rows - 1) * down + 1 : down, left : left + (columns - 1) * across + 1 : across]
            for top in range(height)
            for left in range(width)
        ]
        sums = torch.stack([(tap * by_depthwise).sum((0, 2, 3)) for tap in taps], dim=1)
        return sums.reshape(self._kernel.shape)


def _affine(graph: Graph, nodes: Sequence[Node], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel behind a convolution's products, for maps."""
    tensors = graph.tensors_of(nodes[0])
    channels = nodes[0].shape[0]
    shift = torch.zeros(1, channels, 1, 1, dtype=torch.float64)
    shift = shift + tensors["bias"].reshape(1, -1, 1, 1) if "bias" in tensors else shift
    one = shift + 1
    for node in nodes[1:]:
        shift, one = (node.kind.forward([value], graph.tensors_of(node)) for value in (shift, one))
    return (one - shift).to(dtype), shift.to(dtype)


def _given(setting: Setting, block: InvertedBlock, dtype: torch.dtype) -> tuple[list[Tensor], list[str]]:
    """The gradients that the input is found by, and what they are of."""
    found: dict[str, Tensor | None] = {
        "expand": setting.gradient(block.expand.name, "weight"),
        "depthwise": setting.gradient(block.depthwise.name, "weight"),
        "project": None if block.project is None else setting.gradient(block.project.name, "weight"),
        "first shift": next(iter(shift_gradients(setting, block.rectified.name)), None),
        # At the end itself the units are known, and with them this sum.
        "second shift": None
        if block.project is None
        else next(iter(shift_gradients(setting, block.hidden.name)), None),
    }
    matrices = ("expand", "project")
    names = [name for name, gradient in found.items() if gradient is not None]
    given = [one.detach().cpu().to(dtype) for one in found.values() if one is not None]
    return [one.flatten(1) if name in matrices else one for one, name in zip(given, names, strict=True)], names


def _scale_gradients(setting: Setting, norms: Sequence[Node | None], dtype: torch.dtype) -> list[tuple[int, Tensor]]:
    """The gradients of batch norms' weights, with the place of the norm: they are left to show what is wrong."""
    found = []
    for at, node in enumerate(norms):
        gradient = None if node is None else setting.gradient(node.name, "weight")
        if gradient is not None:
            found.append((at, gradient.detach().cpu().to(dtype)))
    return found


def _last_norm(nodes: Sequence[Node]) -> Node | None:
    """The last batch norm; what may follow it changes no number."""
    return next((node for node in reversed(nodes) if isinstance(node.kind, BatchNorm)), None)


def _normalised(front: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """What a batch norm scaled and shifted, by what it gave."""
    weight = tensors["weight"].reshape(1, -1, 1, 1)
    bias = tensors["bias"].reshape(1, -1, 1, 1) if "bias" in tensors else 0
    return (front - bias) / torch.where(weight.abs() > 0, weight, torch.inf)


def _length(gradient: Tensor, name: str) -> Tensor:
    """What an entry of a gradient is divided by: usual entries of its row, or of its column behind a rectifier."""
    if gradient.dim() == 1:
        return _size(gradient)
    if name == "project":
        along = gradient.square().mean(dim=0, keepdim=True).sqrt()
    else:
        along = gradient.flatten(1).square().mean(dim=1).sqrt().reshape(-1, *(1 for _ in gradient.shape[1:]))
    return along.clamp_min(_LEAST * float(_size(along)))


def _size(values: Tensor) -> Tensor:
    return values.square().mean().sqrt().clamp_min(1e-30)


def _sides(block: InvertedBlock) -> tuple[int, int, int, int]:
    """Zeros at the left, right, top and bottom of what the depthwise convolution reads."""
    kind = block.depthwise.kind
    assert isinstance(kind, Convolution)
    found = [kind.padding[1], kind.padding[1], kind.padding[0], kind.padding[0]]
    for node in block.padding:
        if isinstance(node.kind, ZeroPadding):
            found = [one + more for one, more in zip(found, (*node.kind.sides, 0, 0, 0, 0), strict=False)]
    return found[0], found[1], found[2], found[3]


def _ceiling(node: Node) -> float:
    assert isinstance(node.kind, Rectifier)
    return node.kind.ceiling


def _rectified(value: Tensor, ceiling: float, softness: float) -> Tensor:
    if softness == 0:
        return value.clamp(0, None if ceiling == float("inf") else ceiling)
    found = softness * F.softplus(value / softness)
    return found if ceiling == float("inf") else found - softness * F.softplus((value - ceiling) / softness)


def _open(value: Tensor, ceiling: float, softness: float) -> Tensor:
    """How far each unit passes on what enters it."""
    if softness == 0:
        return ((value > 0) & (value < ceiling)).to(value)
    found = torch.sigmoid(value / softness)
    return found if ceiling == float("inf") else found * torch.sigmoid((ceiling - value) / softness)


def _stretch(weight: Tensor) -> Tensor:
    """The inverse root of what a convolution makes of each direction of its input."""
    moments, directions = torch.linalg.eigh(weight.double().T @ weight.double() / len(weight))
    scaled = moments.clamp_min(_FLAT * float(moments[-1])).rsqrt()
    return (directions * scaled @ directions.T).to(weight)

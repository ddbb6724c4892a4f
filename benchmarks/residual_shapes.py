"""Shapes of small residual networks, for `residual_cases`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10


class Basic(nn.Module):
    """Two 3x3 convolutions and a skip."""

    def __init__(self, entering: int, leaving: int, stride: int, norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(entering, leaving, 3, stride, 1, bias=not norm)
        self.bn1 = nn.BatchNorm2d(leaving) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(leaving, leaving, 3, 1, 1, bias=not norm)
        self.bn2 = nn.BatchNorm2d(leaving) if norm else nn.Identity()
        self.down = _downsample(entering, leaving, stride, norm)

    def forward(self, value: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(value)))))
        return F.relu(inner + self.down(value))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two pointwise ones, and a skip."""

    def __init__(self, entering: int, leaving: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        inner = leaving // 2
        self.conv1 = nn.Conv2d(entering, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, leaving, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(leaving)
        self.down = _downsample(entering, leaving, stride, True)

    def forward(self, value: Tensor) -> Tensor:
        inner = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(value))))))
        return F.relu(self.bn3(self.conv3(inner)) + self.down(value))


class PreActivation(nn.Module):
    """Batch norm and ReLU in front of each convolution, and a skip that nothing rectifies."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(entering)
        self.conv1 = nn.Conv2d(entering, leaving, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(leaving)
        self.conv2 = nn.Conv2d(leaving, leaving, 3, 1, 1, bias=False)
        same = stride == 1 and entering == leaving
        self.down = nn.Identity() if same else nn.Conv2d(entering, leaving, 1, stride, bias=False)

    def forward(self, value: Tensor) -> Tensor:
        inner = self.conv1(F.relu(self.bn1(value)))
        return self.conv2(F.relu(self.bn2(inner))) + self.down(value)


def _downsample(entering: int, leaving: int, stride: int, norm: bool) -> nn.Module:
    if stride == 1 and entering == leaving:
        return nn.Identity()
    pointwise = nn.Conv2d(entering, leaving, 1, stride, bias=not norm)
    return nn.Sequential(pointwise, nn.BatchNorm2d(leaving)) if norm else pointwise


def _stem(width: int, *more: nn.Module, kernel: int = 3, stride: int = 1, norm: bool = True) -> list[nn.Module]:
    convolution = nn.Conv2d(3, width, kernel, stride, kernel // 2, bias=not norm)
    return [convolution, *([nn.BatchNorm2d(width)] * norm), nn.ReLU(), *more]


def _network(
    stem: list[nn.Module], blocks: Sequence[nn.Module], width: int, *more: nn.Module, classes: int = CLASSES
) -> nn.Sequential:
    return nn.Sequential(*stem, *blocks, *more, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def _blocks(
    kind: Callable[[int, int, int], nn.Module], widths: Sequence[int], strides: Sequence[int]
) -> list[nn.Module]:
    return [kind(one, other, stride) for (one, other), stride in zip(pairwise(widths), strides, strict=True)]


def _unnormalised(entering: int, leaving: int, stride: int) -> nn.Module:
    return Basic(entering, leaving, stride, norm=False)


def _plain(width: int) -> list[nn.Module]:
    """Blocks whose skips have no convolution, behind convolutions with a stride."""
    halved = [nn.Conv2d(width // 2, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    again = [nn.Conv2d(width, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return [*halved, *again, Basic(width, width, 1), Basic(width, width, 1)]


# Name, side of the images, network: so small that a case takes about a second.
SHAPES: dict[str, tuple[int, Callable[[], nn.Sequential]]] = {
    "basic": (8, lambda: _network(_stem(16), _blocks(Basic, (16, 32, 64, 64), (2, 2, 1)), 64)),
    "small places": (16, lambda: _network(_stem(16), _blocks(Basic, (16, 32, 64, 96, 96), (2, 2, 2, 1)), 96)),
    "narrow": (16, lambda: _network(_stem(32), _blocks(Basic, (32, 32, 32, 32, 32), (2, 2, 2, 1)), 32)),
    "plain skips": (8, lambda: _network(_stem(32), _plain(64), 64)),
    "bottlenecks": (8, lambda: _network(_stem(16), _blocks(Bottleneck, (16, 64, 128, 128), (2, 2, 1)), 128)),
    "pre-activation": (
        8,
        lambda: _network(
            _stem(16), _blocks(PreActivation, (16, 32, 64, 64), (2, 2, 1)), 64, nn.BatchNorm2d(64), nn.ReLU()
        ),
    ),
    "biases": (8, lambda: _network(_stem(16, norm=False), _blocks(_unnormalised, (16, 32, 64, 64), (2, 2, 1)), 64)),
    "average-pool stem": (
        16,
        lambda: _network(_stem(16, nn.AvgPool2d(2)), _blocks(Basic, (16, 32, 64, 64), (2, 2, 1)), 64),
    ),
    "max-pool stem": (
        32,
        lambda: _network(
            _stem(32, nn.MaxPool2d(3, 2, 1), kernel=7, stride=2), _blocks(Basic, (32, 64, 96, 96), (1, 2, 2)), 96
        ),
    ),
    "strided stem": (16, lambda: _network(_stem(32, kernel=5, stride=2), _blocks(Basic, (32, 64, 64), (2, 2)), 64)),
    "in groups": (
        8,
        lambda: _network(
            _stem(32, stride=2),
            [*_blocks(partial(Bottleneck, groups=2), (32, 64, 128), (1, 2)), Basic(128, 128, 1)],
            128,
        ),
    ),
}
_STATES = ("random", "shifted", "trained", "dead")
NETWORKS = tuple(f"{shape}, {state}" for shape in SHAPES for state in _STATES)
"""Shapes, each on random weights, with batch norms away from 1 and 0, trained a little, and with dead channels."""

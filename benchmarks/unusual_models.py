"""Small networks that a user may hand over and that peeling cannot take as they are, for `unusual`.

Each is given the number of classes, as ``client.model=gradinversion.benchmarks.unusual_models:NAME`` asks for.
All are residual networks for images of 8 px whose last stage has few places, so that the taps of its convolutions
tell its features wherever nothing is in the way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_WIDTH = 32


class Block(nn.Module):
    """Two convolutions and a skip, which is a convolution too where the size changes."""

    def __init__(self, entering: int, leaving: int, stride: int = 1, **padding: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(entering, leaving, 3, stride, 1, bias=False, **padding)
        self.bn1 = nn.BatchNorm2d(leaving)
        self.conv2 = nn.Conv2d(leaving, leaving, 3, 1, 1, bias=False, **padding)
        self.bn2 = nn.BatchNorm2d(leaving)
        self.skip = nn.Conv2d(entering, leaving, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inner + self.skip(x))


class Net(nn.Module):
    """A stem, three stages of one block each, the mean over places, and a linear layer."""

    def __init__(self, num_classes: int, **padding: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, _WIDTH, 3, 1, 1, bias=False, **padding), nn.BatchNorm2d(_WIDTH))
        self.stage1 = Block(_WIDTH, _WIDTH, **padding)
        self.stage2 = Block(_WIDTH, 2 * _WIDTH, 2, **padding)
        self.stage3: nn.Module = Block(2 * _WIDTH, 4 * _WIDTH, 2, **padding)
        self.head = nn.Linear(4 * _WIDTH, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classified(self.stage3(self.stage2(self.stage1(torch.relu(self.stem(x))))))

    def classified(self, x: Tensor) -> Tensor:
        """The logits of what the last stage makes."""
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


class _Branching(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(torch.relu(self.stem(x)))
        if x.mean() > 1e3:
            x = 2 * x
        return self.classified(self.stage3(self.stage2(x)))


class _Twice(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(torch.relu(self.stem(x)))
        return self.classified(self.stage3(self.stage2(self.stage1(x))))


def plain(num_classes: int) -> nn.Module:
    """Nothing in the way."""
    return Net(num_classes)


def branching(num_classes: int) -> nn.Module:
    """Decides by the content of its images what it computes, so that no graph of it can be written."""
    return _Branching(num_classes)


def twice(num_classes: int) -> nn.Module:
    """Runs its first stage twice."""
    return _Twice(num_classes)


def tied(num_classes: int) -> nn.Module:
    """Two convolutions of the first stage have the same weight."""
    net = Net(num_classes)
    net.stage1.conv2.weight = net.stage1.conv1.weight
    return net


def shared(num_classes: int) -> nn.Module:
    """The second batch norm and convolution of the first stage are the first ones, under two names."""
    net = Net(num_classes)
    net.stage1.conv2, net.stage1.bn2 = net.stage1.conv1, net.stage1.bn1
    return net


def tied_last(num_classes: int) -> nn.Module:
    """The last stage, where everything begins, has a convolution whose weight is that of the one before."""
    net, first, second = Net(num_classes), Block(2 * _WIDTH, 4 * _WIDTH, 2), Block(4 * _WIDTH, 4 * _WIDTH)
    second.conv1.weight = first.conv2.weight
    net.stage3 = nn.Sequential(first, second)
    return net


def reflecting(num_classes: int) -> nn.Module:
    """Every 3x3 convolution pads its input with the input's own reflection."""
    return Net(num_classes, padding_mode="reflect")


def frozen_middle(num_classes: int) -> nn.Module:
    """The second stage is not trained, so that its gradients are missing."""
    net = Net(num_classes)
    net.stage2.requires_grad_(False)
    return net


def frozen_last(num_classes: int) -> nn.Module:
    """The last stage is not trained."""
    net = Net(num_classes)
    net.stage3.requires_grad_(False)
    return net

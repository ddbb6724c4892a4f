"""Networks of the benchmarks; what the package does not bundle `load_model` builds as ``module:callable``."""

from __future__ import annotations

from gradinversion.capture.cifar_resnet import cifar_resnet18 as cifar_resnet18
from torch import nn
from torchvision.models.resnet import BasicBlock

POOLED_RESNET = "gradinversion.benchmarks.networks:pooled_resnet"
WIDTHS = (16, 32, 64)


def pooled_resnet(num_classes: int = 10) -> nn.Sequential:
    """The smallest ResNet in the manner of CIFAR: one basic block a stage, widths 16, 32 and 64, global pooling.

    Pooling over all places before the last layer hides from the gradient where things are: on random weights every
    known attack stays near the constant image at a batch of 4.
    """
    first = WIDTHS[0]
    layers: list[nn.Module] = [nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU()]
    channels = first
    for width in WIDTHS:
        layers.append(_block(channels, width))
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def _block(channels: int, width: int) -> nn.Module:
    if channels == width:
        return BasicBlock(channels, width)
    halved = nn.Sequential(nn.Conv2d(channels, width, 1, 2, bias=False), nn.BatchNorm2d(width))
    return BasicBlock(channels, width, 2, halved)

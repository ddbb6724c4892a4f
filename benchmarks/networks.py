"""Networks of the benchmarks that the package does not bundle; `load_model` builds them as ``module:callable``."""

from __future__ import annotations

from torch import nn
from torchvision.models.resnet import BasicBlock, resnet18

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


def cifar_resnet18(num_classes: int = 10) -> nn.Module:
    """torchvision's ResNet-18 with the stem that images of 32 px are given: 3 x 3, stride 1, and no max-pooling."""
    model = resnet18(weights=None, num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model

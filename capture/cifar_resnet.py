"""The residual network for small images that is bundled."""

from __future__ import annotations

from torch import nn


def cifar_resnet18(classes: int = 10, channels: int = 3) -> nn.Module:
    """ResNet-18 with the stem that images of 32 px are given: 3 x 3, stride 1, and no max-pooling.

    Otherwise it is torchvision's (He et al., CVPR 2016, whose own networks for CIFAR are narrower). Unlike the bundled
    ConvNet it pools before its last layer; what its gradient gives away all the same, taps tell.

    Args:
        classes: Number of outputs.
        channels: Of the images.
    """
    # Imported where it is used: each agent is a process, and this would cost each of them 90 MB.
    from torchvision.models.resnet import resnet18  # type: ignore[import-untyped,unused-ignore]

    model: nn.Module = resnet18(weights=None, num_classes=classes)
    model.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model

"""A network of pointwise and depthwise convolutions, as phones run, small and with random weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Expand, depthwise, project; a skip where form and stride allow it."""

    def __init__(
        self, entering: int, leaving: int, hidden: int, stride: int, kernel: int, act: type[nn.Module]
    ) -> None:
        super().__init__()
        self.skips = entering == leaving and stride == 1
        self.expand = nn.Conv2d(entering, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, leaving, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(leaving)
        self.act = act()

    def forward(self, value: Tensor) -> Tensor:
        inner = self.act(self.bn1(self.expand(value)))
        inner = self.bn3(self.project(self.act(self.bn2(self.depthwise(inner)))))
        return inner + value if self.skips else inner


class PhoneNetwork(nn.Module):
    """Places 4 x 4, then 2 x 2."""

    def __init__(self, act: type[nn.Module] = nn.ReLU6, kernel: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 2, 2), nn.BatchNorm2d(64), nn.ReLU6())
        self.narrow = nn.Conv2d(64, 40, 1)
        self.down = Block(40, 48, 400, 2, 3, act)
        self.skip = Block(48, 48, 240, 1, kernel, act)
        self.head = nn.Sequential(nn.Conv2d(48, 96, 1), nn.ReLU())
        self.final = nn.Linear(96, 10)

    def forward(self, images: Tensor) -> Tensor:
        value = self.skip(self.down(self.narrow(self.stem(images))))
        return self.final(self.head(value).mean((2, 3)))


def _phone_network(act: type[nn.Module] = nn.ReLU6, kernel: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = PhoneNetwork(act, kernel)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(0, 0.3)
            module.get_buffer("running_var").uniform_(0.02, 0.1)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0, 0.5)
    return model.eval()


@pytest.fixture(scope="session")
def phone_network() -> Callable[..., nn.Module]:
    """Makes a network: ``phone_network(act=nn.ReLU6, kernel=3, seed=0)``."""
    return _phone_network


def _relu6_rows(places: int, channels: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(places, channels, generator=random, dtype=torch.float64)).clamp(0, 6)


@pytest.fixture(scope="session")
def relu6_rows() -> Callable[..., Tensor]:
    """Makes outputs of a ReLU6: ``relu6_rows(places, channels, seed)``."""
    return _relu6_rows


@pytest.fixture(scope="session")
def neighbourhoods() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Makes a depthwise convolution's input, kernel and output: ``neighbourhoods(images, size, kernel, channels)``."""

    def made(images: int, size: tuple[int, int], kernel: int, channels: int = 120) -> tuple[Tensor, Tensor, Tensor]:
        hidden = _relu6_rows(images * size[0] * size[1], channels, 3).reshape(images, *size, channels)
        random = torch.Generator().manual_seed(4)
        weight = torch.randn(channels, kernel, kernel, generator=random, dtype=torch.float64)
        maps = hidden.permute(0, 3, 1, 2)
        output = F.conv2d(maps, weight[:, None], padding=kernel // 2, groups=channels).permute(0, 2, 3, 1)
        return hidden, weight, output

    return made

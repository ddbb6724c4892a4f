"""A small convolutional network that mends the linear decoder's images, trained on the same public photos.

It is given the features at the cut, and half-way up to the pixels the linear decoder's images; what it makes is added
to these. Half a minute of one core is enough for half a decibel to a whole one where the features are fewer than the
pixels, and what they leave open has to be guessed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .decoder import LinearDecoder
from .places import Cut

# Crops in one step, and pixels at most; steps; and the rate of the first one, which falls to a hundredth.
_CROPS, _PIXELS, _STEPS, _RATE = 24, 100_000, 300, 2e-3
REFINING = 1.5e12
"""Floating-point operations of that training, about, at most."""
# Channels at the grid, at twice its size and so on, and in front of the pixels.
_WIDTHS, _LAST = (128, 64, 48, 32), 12
# Of squared differences against absolute ones.
_SQUARES = 3.0
# Crops that are run at once.
_AT_ONCE = 16


def refine(
    cut: Cut,
    decoder: LinearDecoder,
    crops: Float[Tensor, "crop channel height width"],
    device: torch.device | None = None,
    steps: int = _STEPS,
) -> Float[Tensor, "image channel height width"]:
    """The images that the network makes of the cut's features; the linear decoder's where it has no form for them.

    Args:
        cut: With the features.
        decoder: Fitted at this cut.
        crops: Public photos as the model is given them.
        device: On which.
        steps: Of training.
    """
    device = device or torch.device("cpu")
    values = [place.values.to(device, torch.float32) for place in cut.places]
    given = decoder.images(values)
    doublings = math.log2(decoder.block[0])
    if decoder.block[0] != decoder.block[1] or doublings < 1 or not doublings.is_integer() or cut.is_coupled:
        return given.cpu().double()
    features_of = cut.features(torch.float32, device)
    with torch.no_grad():
        known = [features_of(some.to(device).float()) for some in torch.split(crops, _AT_ONCE)]
        features = torch.cat([_map(some, decoder.grid) for some in known])
        linear = torch.cat([decoder.images(some) for some in known])
    offset = features.mean(dim=(0, 2, 3), keepdim=True)
    scale = features.std(dim=(0, 2, 3), keepdim=True)
    scale = torch.where(scale > 1e-6 * scale.max(), scale, torch.inf)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _Network(features.shape[1], int(doublings), crops.shape[1]).to(device)
    _train(network, (features - offset) / scale, linear, crops.to(device).float(), steps)
    with torch.no_grad():
        found = network((_map(values, decoder.grid) - offset) / scale, given)
    return found.cpu().double()


def _map(values: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """All features on one grid."""
    return torch.cat([value if value.shape[2:] == grid else F.interpolate(value, grid) for value in values], dim=1)


class _Network(nn.Module):
    """From the grid up to the pixels, twice as large at each step."""

    def __init__(self, features: int, doublings: int, channels: int) -> None:
        super().__init__()
        widths = [_WIDTHS[min(step, len(_WIDTHS) - 1)] for step in range(doublings)]
        self.first = nn.Conv2d(features, widths[0], 3, padding=1)
        rising = itertools.pairwise(widths)
        self.rising = nn.ModuleList(nn.Conv2d(low, 4 * high, 3, padding=1) for low, high in rising)
        self.beside = nn.Conv2d(4 * channels, widths[-1], 3, padding=1)
        self.pixels = nn.Conv2d(widths[-1], 4 * _LAST, 3, padding=1)
        self.last = nn.Conv2d(_LAST, channels, 3, padding=1)
        # It begins with the linear decoder's images.
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor, linear: Tensor) -> Tensor:
        value = self.first(features)
        for step in self.rising:
            value = F.pixel_shuffle(step(value.relu()), 2)
        value = (value + self.beside(F.pixel_unshuffle(linear, 2))).relu()
        added: Tensor = self.last(F.pixel_shuffle(self.pixels(value), 2).relu())
        return linear + added


def _train(network: nn.Module, features: Tensor, linear: Tensor, crops: Tensor, steps: int) -> None:
    optimiser = torch.optim.Adam(network.parameters(), _RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1), _RATE / 100)
    random = torch.Generator().manual_seed(0)
    at_once = max(2, min(_CROPS, _PIXELS // (crops.shape[2] * crops.shape[3])))
    for _ in range(steps):
        some = torch.randint(len(crops), (at_once,), generator=random)
        off = network(features[some], linear[some]) - crops[some]
        loss = off.abs().mean() + _SQUARES * off.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        falling.step()

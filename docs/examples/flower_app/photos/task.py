"""The model and the images of each client."""

from __future__ import annotations

import torch
from gradinversion import ClientConfig, load_batch, load_model
from torch import Tensor, nn

IMAGES = 4
MEAN, DEVIATION = (0.5,) * 3, (0.5,) * 3


def build() -> nn.Module:
    """The network that is trained."""
    return load_model("convnet")


def images_of(partition: int) -> tuple[Tensor, Tensor]:
    """The photos of one client, pixels in [0, 1], and a class for each."""
    photos = load_batch(ClientConfig(batch_size=8)).images
    own = torch.arange(IMAGES).add(IMAGES * partition).remainder(len(photos))
    return photos[own], torch.arange(IMAGES).add(IMAGES * partition).remainder(10)


def normalise(images: Tensor) -> Tensor:
    """What the network is fed."""
    return (images - 0.5) / 0.5

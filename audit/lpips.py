"""LPIPS (Zhang et al., CVPR 2018) from a backbone file that is already at hand. Nothing is ever downloaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..capture.weights import ModelError, read_weights
from ..refusal import Refusal

Backbone = Literal["alex", "vgg", "squeeze"]

_FIRST_TENSORS: dict[Backbone, tuple[str, tuple[int, ...]]] = {
    "alex": ("features.0.weight", (64, 3, 11, 11)),
    "vgg": ("features.28.weight", (512, 512, 3, 3)),
    "squeeze": ("features.12.squeeze.weight", (64, 512, 1, 1)),
}
"""One tensor per backbone that tells its ImageNet file from the others'."""

SMALLEST_SIDE = 32
"""Under 32 pixels the pooling of the backbones leaves nothing to compare."""


class LpipsError(Refusal, ValueError):
    """The weights file cannot be used; the message says why and what to give instead."""


@dataclass(frozen=True)
class Lpips:
    """A backbone with the linear heads that torchmetrics ships."""

    network: nn.Module
    backbone: Backbone

    def __call__(
        self, images: Float[Tensor, "batch channel height width"], true: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, " batch"]:
        """The distance of each image to its private image, 0 when equal (Zhang et al., equation 1); pixels in [0, 1].

        Raises:
            LpipsError: the images are not RGB or are under 32 pixels.
        """
        _, channels, height, width = images.shape
        if channels != 3 or min(height, width) < SMALLEST_SIDE:
            raise LpipsError(
                f"the images are {channels} x {height} x {width}, and LPIPS needs three channels and sides of at "
                f"least {SMALLEST_SIDE} pixels"
            )
        with torch.no_grad():
            pairs = zip(torch.split(images.float(), 8), torch.split(true.float(), 8), strict=True)
            return torch.cat([self.network(x, y, normalize=True).reshape(len(x)) for x, y in pairs])


def load_lpips(path: Path) -> Lpips:
    """LPIPS on the ImageNet backbone in ``path``.

    Args:
        path: a state dict as torchvision publishes it for AlexNet, VGG-16 or SqueezeNet 1.1 (``.pth``), or the
            same tensors as ``.safetensors``. The backbone is told from the tensors.

    Raises:
        LpipsError: the file is missing, unreadable, or of another network.
    """
    from torchmetrics.functional.image.lpips import _LPIPS

    state = _read(path)
    backbone = _recognise(state, path)
    network = _LPIPS(pretrained=True, net=backbone, pnet_rand=True)
    parameters = dict(network.net.named_parameters())
    names = {name: "features." + re.sub(r"^slices?\.?\d+\.", "", name) for name in parameters}
    wrong = [file_name for name, file_name in names.items() if _shape(state, file_name) != parameters[name].shape]
    if wrong:
        raise LpipsError(f"{path} looks like {backbone} weights, but {wrong[0]} is missing or has another shape")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[names[name]])
    return Lpips(network, backbone)


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.exists():
        raise LpipsError(f"the weights file {path} does not exist")
    try:
        return read_weights(path)
    except ModelError as error:
        raise LpipsError(f"the weights file {path} cannot be read as a state dict: {error}") from error


def _recognise(state: Mapping[str, Tensor], path: Path) -> Backbone:
    for backbone, (name, shape) in _FIRST_TENSORS.items():
        if _shape(state, name) == shape:
            return backbone
    raise LpipsError(f"{path} holds neither AlexNet, VGG-16 nor SqueezeNet 1.1 weights as torchvision publishes them")


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None

"""Where a convolution's kernel goes, and which places it joins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """Of a convolution in two dimensions, with zeros around; height before width."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def has_taps(self) -> bool:
        """Whether the output has the size of the input and each tap of an odd kernel, of more than one, sees all of it
        shifted: the form of weight gradient that `factor_taps` takes apart, group by group where channels are in
        groups."""
        return (
            max(self.kernel) > 1
            and all(side % 2 == 1 for side in self.kernel)
            and self.stride == (1, 1)
            and self.dilation == (1, 1)
            and self.padding == (self.kernel[0] // 2, self.kernel[1] // 2)
        )

    @property
    def keywords(self) -> dict[str, Any]:
        """As torch's functions take it beside the weight."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }


def gradient_matrix(geometry: Geometry, size: tuple[int, int], cotangent: Tensor) -> Tensor:
    """``(B H W, O K)``: by how much each place of the input enters each entry of the weight gradient of its channel.

    Args:
        geometry: With one group.
        size: Height and width of the input.
        cotangent: Derivative of the loss by the output, with the images in front.
    """
    height, width = size
    batch, outputs = cotangent.shape[:2]
    numbered = torch.arange(1, height * width + 1, dtype=torch.float64).reshape(1, 1, height, width)
    # For each kernel place and output place the input place that meets it; 0 is the padding.
    met = F.unfold(numbered, geometry.kernel, geometry.dilation, geometry.padding, geometry.stride)[0].long()
    matrix = cotangent.new_zeros(batch, height * width + 1, outputs, len(met))
    arriving = cotangent.flatten(2).transpose(1, 2)
    for place, inputs in enumerate(met):
        matrix[:, inputs, :, place] = arriving
    return matrix[:, 1:].reshape(batch * height * width, outputs * len(met))

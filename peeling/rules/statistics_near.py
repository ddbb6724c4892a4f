"""What one convolution in front of batch norm on batch statistics says near an input, and the derivative of that.

See `statistics_joint`. Images and places are rows, and channels columns.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from .statistics_equations import Reader

Pair = tuple[Float[Tensor, "output entry"], Float[Tensor, "place output"]]
"""Something for each entry of the weight gradient, and for each entry of the output."""


class NearInput:
    """The equations of one convolution, scaled so that each kind has a right side of length 1.

    Args:
        reader: The convolution.
        heard: Its output channels whose gradient counts; known outputs count in all.
        values: The input near which it is; None for none: then what enters the batch norm is taken for what is known of
            it, deviations for those of white noise, and neither follows a move of the input.
    """

    def __init__(
        self,
        reader: Reader,
        heard: Bool[Tensor, " output"],
        values: Float[Tensor, "image input height width"] | None,
    ) -> None:
        self.reader, self._follows = reader, values is not None
        self.weight, self.gradient = reader.weight.flatten(1), reader.gradient.flatten(1)
        self.heard, self.told, self.known = heard.double(), _rows(reader.told), _rows(reader.is_told).double()
        if values is None:
            self.patches, self.centred, entering = torch.zeros(0), torch.zeros_like(self.told), _rows(reader.first())
            self.deviation = self.weight.norm(dim=1)
        else:
            self.patches = self._patches(values)
            output = self.patches @ self.weight.T
            output = output - output.mean(dim=0)
            self.deviation = (output.square().mean(dim=0) + reader.eps).sqrt()
            self.centred = output / self.deviation
            entering = torch.where(_rows(reader.is_told), self.told, self.centred)
        scaled = reader.scaled_sum
        self.scaled = (_rows(reader.derivative) * entering).sum(dim=0) if scaled is None else scaled
        self.front = _rows(reader.in_front(self._grid(entering)))
        self.length = float((self.heard * self.deviation * self.gradient.norm(dim=1)).norm().clamp_min(1e-300))
        """Of the gradients' right side, by which they are divided."""
        self._told_length = float((self.known * self.told).norm().clamp_min(1e-300))

    def to(self, dtype: torch.dtype) -> NearInput:
        """In another type."""
        other = copy(self)
        for name, one in self.__dict__.items():
            setattr(other, name, one.to(dtype) if isinstance(one, Tensor) else one)
        return other

    def left(self) -> Pair:
        """By how much the input misses them."""
        made = self.front.T @ self.patches if self._follows else torch.zeros_like(self.gradient)
        gradients = self.heard[:, None] * (made - self.deviation[:, None] * self.gradient)
        return gradients / self.length, self.known * (self.centred - self.told) / self._told_length

    def forth(self, move: Float[Tensor, "image input height width"]) -> Pair:
        """What a move of the input adds to what it misses."""
        patches = self._patches(move)
        output = patches @ self.weight.T
        output = output - output.mean(dim=0)
        gradients = self.front.T @ patches
        if self._follows:
            deviation = (self.centred * output).mean(dim=0)
            output = output - self.centred * deviation
            entering = (self.known - 1) * output / self.deviation * self.scaled / self.reader.places
            gradients = gradients + (entering - entering.mean(dim=0)).T @ self.patches
            gradients = gradients - deviation[:, None] * self.gradient
        gradients = self.heard[:, None] * gradients
        return gradients / self.length, self.known * output / self.deviation / self._told_length

    def back(self, pair: Pair, size: tuple[int, int]) -> Float[Tensor, "image input height width"]:
        """The transpose of `forth`.

        Args:
            pair: For each equation.
            size: Height and width of the input.
        """
        gradients, output = self.heard[:, None] * pair[0] / self.length, self.known * pair[1] / self._told_length
        patches = self.front @ gradients
        if self._follows:
            entering = self.patches @ gradients.T
            output = output + (self.known - 1) * (entering - entering.mean(dim=0)) * self.scaled / self.reader.places
            output = output / self.deviation
            by_deviation = (gradients * self.gradient).sum(dim=1) / self.reader.places
            output = output - self.centred * ((output * self.centred).mean(dim=0) + by_deviation)
        else:
            output = output / self.deviation
        output = output - output.mean(dim=0)
        return self._unpatched(patches + output @ self.weight, size)

    def off(self) -> Float[Tensor, " output"]:
        """What is left of each output channel's gradient, whether it counts or not, relative to it or to the median
        one."""
        length = self.deviation * self.gradient.norm(dim=1)
        left = (self.front.T @ self.patches - self.deviation[:, None] * self.gradient).norm(dim=1)
        return left / length.maximum(length.median()).clamp_min(1e-300)

    def held_by_outputs(self, size: tuple[int, int]) -> Float[Tensor, "image height width"]:
        """What known outputs add to the diagonal of the normal matrix, at the mean over input channels.

        Args:
            size: Height and width of the input.
        """
        by_output = (self.known / self.deviation.square()) @ self.weight.square()
        return self._unpatched(by_output, size).mean(dim=1) / self._told_length**2

    def heard_derivative(self) -> Float[Tensor, "image output height width"]:
        """The derivative by the output that makes the gradients, as it counts in them."""
        return self._grid(self.front * self.heard) / self.length

    @property
    def _geometry(self) -> dict[str, Any]:
        kind = self.reader.kind
        where = {"stride": kind.stride, "padding": kind.padding, "dilation": kind.dilation}
        return {"kernel_size": kind.kernel, **where}

    def _grid(self, rows: Tensor) -> Tensor:
        count, _, height, width = self.reader.derivative.shape
        return rows.reshape(count, height, width, -1).permute(0, 3, 1, 2)

    def _patches(self, values: Tensor) -> Tensor:
        """``(place of the output, input x kernel)``."""
        found = F.unfold(values, **self._geometry)
        return found.transpose(1, 2).reshape(-1, found.shape[1])

    def _unpatched(self, patches: Tensor, size: tuple[int, int]) -> Tensor:
        """The transpose of `_patches`."""
        count = len(self.reader.derivative)
        return F.fold(patches.reshape(count, -1, patches.shape[1]).transpose(1, 2), size, **self._geometry)


def _rows(grid: Tensor) -> Tensor:
    return grid.permute(0, 2, 3, 1).reshape(-1, grid.shape[1])

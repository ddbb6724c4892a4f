"""Batch-norm statistics: a natural batch excites each layer the way the training data did."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor, nn

Statistics = tuple[Tensor, Tensor]
"""Mean and biased variance per feature."""


def batch_norm_distance(found: Mapping[str, Statistics], target: Mapping[str, Statistics]) -> Float[Tensor, ""]:
    """``sum_l ||mean_l(x) - mean_l||_2 + ||var_l(x) - var_l||_2``: R_BN of Yin et al. 2021, eq. 10.

    Args:
        found: Statistics of the candidate batch at the input of each batch-norm layer, by layer name.
        target: What they should be; layers that ``found`` lacks are skipped.
    """
    return _sum([_layer(found[name], target[name]) for name in target if name in found], target)


def relative_batch_norm_distance(
    found: Mapping[str, Statistics], target: Mapping[str, Statistics]
) -> Float[Tensor, ""]:
    """The mean over the layers of each distance over the length of its target, so that no layer outweighs the rest."""
    layers = []
    for name in target:
        if name in found:
            mean, var = target[name]
            layers.append(_layer(found[name], target[name]) / (mean.norm() + var.norm()).clamp_min(1e-12))
    return _sum(layers, target) / max(len(layers), 1)


def _layer(found: Statistics, target: Statistics) -> Float[Tensor, ""]:
    return (found[0] - target[0]).norm() + (found[1] - target[1]).norm()


def _sum(values: list[Tensor], target: Mapping[str, Statistics]) -> Float[Tensor, ""]:
    if values:
        return torch.stack(values).sum()
    return next(iter(target.values()))[0].new_zeros(()) if target else torch.zeros(())


class InputStatistics:
    """Records mean and biased variance of the inputs of some layers while it is entered, by layer name.

    The recorded tensors are part of the graph, so a distance to them has a derivative by the images.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = dict(layers)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self.found: dict[str, Statistics] = {}

    def __enter__(self) -> InputStatistics:
        self.found.clear()
        for name, layer in self._layers.items():

            def note(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                values = inputs[0]
                over = [dimension for dimension in range(values.dim()) if dimension != 1]
                var, mean = torch.var_mean(values, dim=over, correction=0)
                self.found[name] = (mean, var)

            self._handles.append(layer.register_forward_pre_hook(note))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

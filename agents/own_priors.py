"""Priors of the user's own: what each is given, and what it must give back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ..plugins import Plugin, PluginKind, broken, called, find_plugin
from .objective_config import OwnPrior


class PriorFunction(Protocol):
    """What ``objective.priors=module:callable:WEIGHT`` names, or an entry point of ``gradinversion.priors``."""

    def __call__(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, ""]:
        """How unlike a natural batch these images are; the lower, the likelier.

        Args:
            images: A candidate batch, normalised pixels (zero is the data's mean colour), on the device of the agent.

        Returns:
            A mean over the batch, one finite number with a derivative by the images everywhere; the same for the same
            images, whatever was asked before.
        """


class OwnPriors:
    """The priors that an objective names, found once and tried on one random batch.

    Args:
        named: With their weights; the order is that of the sum.
        shape: Of a batch.
        device: Of the batches.

    Raises:
        PluginError: One cannot be had, or does not keep its protocol.
    """

    def __init__(self, named: Sequence[OwnPrior], shape: Sequence[int], device: torch.device) -> None:
        self._plugins = [(find_plugin(PluginKind.PRIOR, one.name), one.weight) for one in named]
        for plugin, _ in self._plugins:
            _try(plugin, torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0)).to(device))

    def terms(self, images: Float[Tensor, "batch channel height width"]) -> dict[str, Float[Tensor, ""]]:
        """Each prior's value before its weight, by the name of its term: an entry point may be called as ours are."""
        return {_term(plugin): _value(plugin, images) for plugin, _ in self._plugins}

    @property
    def weights(self) -> dict[str, float]:
        """Of the terms."""
        return {_term(plugin): weight for plugin, weight in self._plugins}


def _term(plugin: Plugin) -> str:
    return f"prior:{plugin.name}"


def _value(plugin: Plugin, images: Tensor) -> Tensor:
    value = called(plugin, images)
    if not isinstance(value, Tensor) or value.dim() > 0:
        given = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise broken(plugin, f"returned {given}; it must return one number as a tensor without axes, such as a mean")
    return value


def _try(plugin: Plugin, images: Tensor) -> None:
    images = images.requires_grad_()
    with torch.enable_grad():
        value, again = _value(plugin, images), _value(plugin, images)
    if not bool(torch.isfinite(value)):
        raise broken(plugin, "is not finite on a random batch")
    if not torch.equal(value.detach(), again.detach()):
        raise broken(plugin, "gives another number for the same images; it must draw no random numbers itself")
    (derivative,) = torch.autograd.grad(value, images, allow_unused=True) if value.requires_grad else (None,)
    if derivative is None:
        raise broken(plugin, "has no derivative by the images: remove no_grad, detach or rounding")
    if not bool(torch.isfinite(derivative).all()):
        raise broken(plugin, "has a derivative that is not finite on a random batch")

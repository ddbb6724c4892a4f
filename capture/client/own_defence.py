"""A defence of the user's own: what it is given, and what it must give back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ...plugins import Plugin, PluginKind, broken, called, find_plugin


class DefenceFunction(Protocol):
    """What ``client.defence=module:callable:STRENGTH`` names, or an entry point of ``gradinversion.defences``."""

    def __call__(
        self, gradients: Mapping[str, Tensor], strength: float, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """What the client sends in place of these gradients.

        Args:
            gradients: By parameter name, on the CPU; of a client with local steps its weight delta. They may be
                changed in place.
            strength: As the command has it; 0 where it gives none.
            generator: Source of all that is random, so that the same seed gives the same update.

        Returns:
            The same names with tensors of the same shapes, finite.
        """


def apply_own_defence(
    gradients: dict[str, Tensor], name: str, strength: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """The gradient after a plug-in's defence, in the types that it had.

    Args:
        gradients: Copies, by parameter name.
        name: Of the plug-in.
        strength: See `DefenceFunction`.
        generator: Source of the noise, on the CPU.

    Raises:
        PluginError: It cannot be had, or does not keep its protocol.
    """
    plugin = find_plugin(PluginKind.DEFENCE, name)
    shapes = {key: (value.shape, value.dtype, value.device) for key, value in gradients.items()}
    sent = called(plugin, gradients, strength, generator)
    _require_same_names(plugin, sent, shapes.keys())
    kept = {}
    for key, (shape, dtype, device) in shapes.items():
        value = sent[key]
        if not isinstance(value, Tensor) or value.shape != shape or not bool(torch.isfinite(value).all()):
            given = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise broken(plugin, f"returned {given} for {key!r}; it must return finite numbers of shape {tuple(shape)}")
        kept[key] = value.detach().to(device, dtype).clone()
    return kept


def _require_same_names(plugin: Plugin, sent: object, names: object) -> None:
    if isinstance(sent, Mapping) and sent.keys() == names:
        return
    given = "other parameters" if isinstance(sent, Mapping) else f"a {type(sent).__name__}"
    raise broken(plugin, f"returned {given}; it must return a tensor for each parameter that it was given, by its name")

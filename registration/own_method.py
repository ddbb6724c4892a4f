"""A way of the user's own to find the warps: what it is given, and what it must give back."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ..plugins import PluginKind, broken, called, find_plugin


class WarpFinder(Protocol):
    """What ``registration.method=module:callable`` names, or an entry point of ``gradinversion.registrations``.

    The guard judges its warps like any other: one that folds, moves too far, or makes the candidates agree no better is
    refused, and what all seeds share is taken off.
    """

    def __call__(
        self, candidates: Float[Tensor, "seed image channel height width"]
    ) -> Float[Tensor, "seed image height width 2"]:
        """Where each candidate shows what the consensus shows.

        Args:
            candidates: Of all seeds, finite float32 in any linear scale; the image at one place is of the same thing in
                all of them. They may not be changed.

        Returns:
            Displacements in pixels, x (to the right) and then y (down): the registered candidate is
            ``candidate(p + displacement(p))``. Finite numbers.
        """


def own_displacement(
    name: str, candidates: Float[Tensor, "seed image channel height width"]
) -> Float[Tensor, "seed image height width 2"]:
    """The displacements that a plug-in finds, in the units of this folder: [-1, 1] over the image.

    Args:
        name: Of the plug-in.
        candidates: See `WarpFinder`.

    Raises:
        PluginError: It cannot be had, or does not keep its protocol.
    """
    plugin = find_plugin(PluginKind.REGISTRATION, name)
    with torch.enable_grad():
        found = called(plugin, candidates.clone())
    seeds, images, _, height, width = candidates.shape
    wanted = (seeds, images, height, width, 2)
    if not isinstance(found, Tensor) or tuple(found.shape) != wanted:
        given = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise broken(plugin, f"returned {given}; it must return displacements of shape {wanted}")
    found = found.detach().to(candidates)
    if not bool(torch.isfinite(found).all()):
        raise broken(plugin, "returned displacements that are not finite")
    return found / found.new_tensor([width / 2, height / 2])

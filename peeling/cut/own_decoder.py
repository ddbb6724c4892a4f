"""A decoder of the user's own: what it is fitted on, and what it must give back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ...plugins import Plugin, PluginKind, broken, called, find_plugin
from .decoder import AT_ONCE, HELD_OUT, PIXELS, Decoded
from .places import Cut

Features = Sequence[Float[Tensor, "image channel rows columns"]]
"""What is known of images at each place of the cut, none below zero."""
Images = Float[Tensor, "image channel height width"]
"""As the model is given them: normalised."""


class DecoderFactory(Protocol):
    """What ``peeling.decoder=module:callable`` names, or an entry point of ``gradinversion.decoders``."""

    def __call__(self, photos: Images, features_of: Callable[[Images], list[Tensor]]) -> Callable[[Features], Images]:
        """A decoder that was fitted on public photos.

        Args:
            photos: Crops of public photos, normalised, on the CPU. No private image is among them.
            features_of: What is known of such images where the private ones are known: their features at each place of
                the cut. It runs the server's model; no derivative goes through it.

        Returns:
            A function from features to images of the photos' shape. It is asked for photos that were held out, by which
            its error is measured, and then for the private images. A module is one, if it takes a list of tensors.
        """


def decode_with(
    name: str,
    cut: Cut,
    crops: Float[Tensor, "crop channel height width"],
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Decoded:
    """What a plug-in's decoder makes of the cut's features.

    Args:
        name: Of the plug-in.
        cut: With the features.
        crops: Public photos as the model is given them; one in five is held out.
        dtype: In which the model is run.
        device: On which.

    Raises:
        PluginError: It cannot be had, or does not keep its protocol.
    """
    plugin = find_plugin(PluginKind.DECODER, name)
    device = device or torch.device("cpu")
    run = cut.features(dtype, device)
    images = len(cut.places[0].values)
    at_once = max(1, min(AT_ONCE, PIXELS // (crops.shape[2] * crops.shape[3])))
    if cut.is_coupled:  # statistics of as many images as the cut's
        at_once = images
    pieces = [piece for piece in torch.split(crops, at_once) if not cut.is_coupled or len(piece) == images]
    if len(pieces) < 2:
        raise broken(
            plugin,
            f"has {len(crops)} public photos for {images} images in one batch; it needs twice as many as these, since "
            "some are held out",
        )
    apart = set(range(HELD_OUT - 1, len(pieces), HELD_OUT)) or {len(pieces) - 1}
    held = torch.cat([piece for index, piece in enumerate(pieces) if index in apart])
    fitted_on = [piece for index, piece in enumerate(pieces) if index not in apart]

    def features_of(given: Tensor) -> list[Tensor]:
        with torch.no_grad():
            parts = [run(some.to(device, dtype)) for some in torch.split(given, at_once)]
        return [torch.cat(values).cpu().float() for values in zip(*parts, strict=True)]

    known = [place.values.cpu().float() for place in cut.places]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(0)
        decoder = called(plugin, torch.cat(fitted_on), features_of)
    if not callable(decoder):
        raise broken(plugin, f"returned a {type(decoder).__name__}; it must return a function from features to images")
    fitted = Plugin(plugin.kind, plugin.name, decoder, plugin.source)
    error = float((_images(fitted, features_of(held), held.shape) - held).square().mean().sqrt())
    return Decoded(_images(fitted, known, (images, *crops.shape[1:])).double(), error)


def _images(decoder: Plugin, features: list[Tensor], shape: Sequence[int]) -> Tensor:
    with torch.no_grad():
        found = called(decoder, features)
    if not isinstance(found, Tensor) or tuple(found.shape) != tuple(shape):
        given = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise broken(decoder, f"makes {given} of the features; it must make images of shape {tuple(shape)}")
    found = found.detach().cpu().float()
    if not bool(torch.isfinite(found).all()):
        raise broken(decoder, "makes images that are not finite")
    return found

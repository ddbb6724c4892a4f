"""The user's own image generator, within whose range an attack may look for the images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..capture import ModelError
from ..capture.models import build_own
from ..capture.weights import load_state, read_weights
from ..plugins import accepts

# Pixels outside [0, 1] by so much are rounding.
_ROUNDING = 1e-3
_LABELS = "labels"


def load_generator(name: str, weights: str | None, image_count: int, image_shape: Sequence[int]) -> nn.Module:
    """A generator that keeps the contract, in evaluation mode and with its weights frozen.

    The contract:

    - ``name`` is ``module:callable``. The callable is given ``image_shape=(channels, height, width)`` when it takes
      that and nothing otherwise, and returns a ``torch.nn.Module``.
    - The module has ``latent_shape``, the shape of one latent without the batch axis, such as ``(128,)``. Latents are
      float32 and begin at ``z ~ N(0, 1)``.
    - Called with latents ``(batch, *latent_shape)`` it returns pixels ``(batch, channels, height, width)`` in [0, 1]
      (not normalised), a differentiable function of the latents and of nothing else. If its ``forward`` takes
      ``labels``, it is given the labels of the batch, ``(batch,)`` int64, too.

    Args:
        name: See above. The module is the user's code: it is imported and run.
        weights: A .safetensors, .pt or .pth file with the module's state dict, never unpickled; None when the callable
            sees to its weights itself. What the callable draws at random is the same on every call.
        image_count: Of the update, for a trial.
        image_shape: Of the update.

    Raises:
        ModelError: What is missing, or how the contract is broken, in one sentence.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        generator = build_own(name, "generator", image_shape=tuple(image_shape))
    if weights is not None:
        load_state(generator, read_weights(weights), repr(weights), "generator")
    generator.eval().requires_grad_(False)
    _check(generator, name, (image_count, *image_shape))
    return generator


def latent_shape(generator: nn.Module) -> tuple[int, ...]:
    """The shape of one latent."""
    return tuple(generator.latent_shape)  # type: ignore[arg-type]


def generate(
    generator: nn.Module, latents: Float[Tensor, "batch ..."], labels: Tensor
) -> Float[Tensor, "batch channel height width"]:
    """Pixels in [0, 1]; the labels go to a generator that takes them."""
    conditional = accepts(generator.forward, _LABELS)
    images: Tensor = generator(latents, labels=labels) if conditional else generator(latents)
    return images


def _check(generator: nn.Module, name: str, wanted: tuple[int, ...]) -> None:
    where = f"the generator {name!r}"
    shape = getattr(generator, "latent_shape", None)
    if not isinstance(shape, Sequence) or not shape or not all(isinstance(n, int) and n > 0 for n in shape):
        given = "has no latent_shape" if shape is None else f"has the latent_shape {shape!r}"
        raise ModelError(f"{where} {given}: give it the shape of one latent without the batch axis, such as (128,)")
    latents = torch.randn(wanted[0], *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.zeros(wanted[0], dtype=torch.int64)
    try:
        images, again = (generate(generator, latents, labels) for _ in range(2))
    # The user's own code may raise anything.
    except Exception as error:
        raise ModelError(
            f"{where} cannot take latents of shape {tuple(latents.shape)} ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(images, Tensor) or tuple(images.shape) != wanted:
        given = str(tuple(images.shape)) if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise ModelError(f"{where} returns {given} for {wanted[0]} latents; it must return images of shape {wanted}")
    if not bool(torch.isfinite(images).all()):
        raise ModelError(f"{where} returns pixels that are not finite for latents z ~ N(0, 1)")
    low, high = (float(extreme.detach()) for extreme in images.aminmax())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ModelError(
            f"{where} returns pixels from {low:.3g} to {high:.3g}; they must lie in [0, 1]: let it end with a sigmoid, "
            "or (x + 1) / 2 after a tanh"
        )
    if not torch.equal(images, again):
        raise ModelError(f"{where} returns other images for the same latents: it must draw no random numbers itself")
    if not images.requires_grad:
        raise ModelError(f"{where} returns images that have no derivative by the latents: remove no_grad or detach")

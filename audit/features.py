"""Whether the features that the gradient determines are those of the private images: then they leaked, picture or not.

Who holds an image can push it through the server's model and see whether its features are among those recovered; at
errors of 1e-6 that is certain. Only who holds the private images can say that it is so, and the audit does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ..capture import CapturedUpdate, PrivateBatch, client_mode
from ..peeling import TapCut
from .pool import Pool

_CLEARLY = 0.1
"""Features are recognised where the next image's are ten times as far off or more."""
_AT_ONCE = 32


@dataclass(frozen=True)
class FeatureLeak:
    """How far the recovered features are from those of the private images, in the order of the private batch."""

    convolution: str
    """Whose weight gradient gave them."""
    shape: tuple[int, int, int]
    """Channels, height, width of one image's features."""
    errors: tuple[float, ...]
    """Relative distance of each private image's features to the recovered ones that are taken for them."""
    next_errors: tuple[float, ...]
    """The same for the nearest other image of the batch and the pool; infinite where there is none."""

    @property
    def recognised(self) -> tuple[bool, ...]:
        """Whether each private image can be told by its features from every other image."""
        pairs = zip(self.errors, self.next_errors, strict=True)
        return tuple(error < _CLEARLY and error < _CLEARLY * other for error, other in pairs)


def measure_feature_leak(
    model: nn.Module, private: PrivateBatch, update: CapturedUpdate, cut: TapCut, pool: Pool | None
) -> FeatureLeak:
    """The recovered features held against those of the private images and of other images.

    Args:
        model: in the state that the client started from; it is left as it was.
        private: the true images in [0, 1].
        update: that was attacked.
        cut: what the attack recovered.
        pool: other images, or None.
    """
    images = private.images if pool is None else torch.cat([private.images, pool.images.to(private.images)])
    like = next(model.parameters())
    with torch.no_grad(), client_mode(model, update.batch_norm), _stopping_at(model, cut.batch_norm) as reached:
        parts = [reached(update.normalisation.apply(part.to(like))) for part in torch.split(images, _AT_ONCE)]
    features = torch.cat(parts).clamp_min(0).flatten(1).double().cpu()
    found = cut.activations.flatten(1).double().cpu()
    own = features[: len(private.images)]
    distances = torch.cdist(own, found) / own.norm(dim=1, keepdim=True).clamp_min(1e-300)
    order = linear_sum_assignment(distances.numpy())[1].tolist()
    rows = found[list(order)]
    others = torch.cdist(rows, features) / own.norm(dim=1, keepdim=True).clamp_min(1e-300)
    others[torch.arange(len(own)), torch.arange(len(own))] = torch.inf
    return FeatureLeak(
        cut.convolution,
        (cut.activations.shape[1], cut.activations.shape[2], cut.activations.shape[3]),
        tuple(float(distances[image, row]) for image, row in enumerate(order)),
        tuple(others.min(dim=1).values.tolist()),
    )


class _Reached(Exception):  # noqa: N818 - it is no error
    """Carries a module's output out of the forward pass."""

    def __init__(self, value: Float[Tensor, "batch channel height width"]) -> None:
        self.value = value


@contextmanager
def _stopping_at(model: nn.Module, name: str) -> Iterator[_Forward]:
    def stop(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        raise _Reached(output.clone())

    handle = model.get_submodule(name).register_forward_hook(stop)
    try:
        yield _Forward(model, name)
    finally:
        handle.remove()


@dataclass(frozen=True)
class _Forward:
    """A model that ends at one of its modules."""

    model: nn.Module
    name: str

    def __call__(self, images: Tensor) -> Tensor:
        try:
            self.model(images)
        except _Reached as reached:
            return reached.value
        raise RuntimeError(f"the model did not run its module {self.name!r}")

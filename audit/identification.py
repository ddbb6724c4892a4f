"""Image Identifiability Precision: is a private image the one that its reconstruction would be taken for?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..capture import BatchNormMode, Normalisation, client_mode
from ..capture.forward import run
from .config import EMBEDDINGS
from .lpips import SMALLEST_SIDE, Lpips, LpipsError, load_lpips

GRID = 8
"""Side of the thumbnail of the embedding ``pixels``."""
_CHUNK = 32


@dataclass(frozen=True)
class Embedding:
    """Features in which images are compared by cosine similarity."""

    name: str
    """What the features are, in words for the report."""
    embed: Callable[[Tensor], Tensor]
    """Images in [0, 1], shape (batch, channel, height, width), to features, shape (batch, feature)."""


def make_embedding(
    kind: str,
    *,
    model: nn.Module | None = None,
    normalisation: Normalisation | None = None,
    lpips_weights: str | Path | None = None,
) -> Embedding:
    """The embedding of this kind.

    - ``pixels``: the image average-pooled to 8 x 8 places, minus the mean of each channel. It depends on nothing but
      the image, so numbers can be compared between models; a constant image has no direction in it.
    - ``model``: the audited model's last feature map, average-pooled over all places. The paper's choice of layer; on a
      network with random weights it identifies little.
    - ``lpips``: the last feature map of the LPIPS backbone, average-pooled over all places.

    Args:
        kind: one of the names above.
        model: for ``model``.
        normalisation: of the model's inputs, for ``model``.
        lpips_weights: the backbone's file, for ``lpips``.

    Raises:
        ValueError: an unknown kind, or what the kind needs is missing.
        LpipsError: the backbone's file cannot be used.
    """
    if kind == "pixels":
        return Embedding(f"pixels average-pooled to {GRID} x {GRID}, minus the mean colour", _thumbnails)
    if kind == "model":
        if model is None or normalisation is None:
            raise ValueError("audit.embedding=model needs the audited model and its normalisation")
        network, rule = model, normalisation
        return Embedding(
            "average-pooled features of the audited model's last feature map",
            lambda images: _model_features(network, rule, images),
        )
    if kind == "lpips":
        if lpips_weights is None:
            raise ValueError("audit.embedding=lpips needs the file of its backbone: give audit.lpips_weights=FILE")
        lpips = load_lpips(Path(lpips_weights))
        return Embedding(
            f"average-pooled features of the {lpips.backbone} backbone of {lpips_weights}",
            lambda images: _lpips_features(lpips, images),
        )
    raise ValueError(f"audit.embedding={kind}: choose among {', '.join(EMBEDDINGS)}.")


class Gallery:
    """Images among which reconstructions are recognised; their features are computed once.

    Args:
        images: the private images in their order, then all others, in [0, 1].
        embedding: the features.
    """

    def __init__(self, images: Float[Tensor, "gallery channel height width"], embedding: Embedding) -> None:
        self.embedding = embedding
        self._features = _features(images, embedding)

    def __len__(self) -> int:
        return len(self._features)

    def identify(self, images: Float[Tensor, "batch channel height width"]) -> tuple[bool, ...]:
        """Which reconstructions are identified (the IIP of Yin et al., CVPR 2021).

        One is when its own original is its nearest neighbour by cosine similarity, nearer than any other; where several
        reconstructions have the same original as their nearest neighbour, only the most similar one can be. The share
        of the batch is the Image Identifiability Precision.

        Args:
            images: reconstructions in the order of the private images, in [0, 1].
        """
        similarity = torch.nan_to_num(_features(images, self.embedding) @ self._features.T, nan=-1.0)
        best, nearest = similarity.max(1)
        found = []
        for index in range(len(images)):
            tied = int((similarity[index] >= best[index]).sum()) > 1
            rivals = [k for k in range(len(images)) if k != index and nearest[k] == index and best[k] >= best[index]]
            found.append(int(nearest[index]) == index and not tied and not rivals and float(best[index]) > 0)
        return tuple(found)


def _features(images: Tensor, embedding: Embedding) -> Float[Tensor, "batch feature"]:
    parts = [embedding.embed(chunk.detach().float().cpu()) for chunk in torch.split(images, _CHUNK)]
    return F.normalize(torch.cat(parts).double(), dim=1)


def _thumbnails(images: Tensor) -> Tensor:
    small = F.adaptive_avg_pool2d(images, GRID)
    return (small - small.mean((2, 3), keepdim=True)).flatten(1)


def _model_features(model: nn.Module, normalisation: Normalisation, images: Tensor) -> Tensor:
    maps: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            maps[:] = [output]

    handles = [module.register_forward_hook(keep) for module in model.modules()]
    like = next(model.parameters())
    try:
        with client_mode(model, BatchNormMode.EVAL), torch.no_grad():
            output = run(model, normalisation.apply(images.to(like)))
    finally:
        for handle in handles:
            handle.remove()
    return maps[0].mean((2, 3)).cpu() if maps else output.cpu()


def _lpips_features(lpips: Lpips, images: Tensor) -> Tensor:
    if images.shape[1] != 3 or min(images.shape[-2:]) < SMALLEST_SIDE:
        raise LpipsError(
            f"audit.embedding=lpips needs three channels and sides of at least {SMALLEST_SIDE} pixels, and the images "
            f"are {' x '.join(map(str, images.shape[1:]))}: give audit.embedding=pixels"
        )
    with torch.no_grad():
        scaled = lpips.network.scaling_layer(2 * images - 1)  # type: ignore[operator]
        maps = lpips.network.net(scaled)  # type: ignore[operator]
    last: Tensor = maps[-1]
    return last.mean((2, 3))

"""Keep of the mean what the seeds share: a Wiener filter whose noise is read off the seeds' differences."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_CONTRASTS = 3  # differences between seeds that the noise is read off
_THRESHOLD = 2.7  # deviations of noise below which a coefficient of the first pass is dropped
_SIDE = 8  # pixels per side of a patch
_DENSE_BELOW = 96  # patches start every second pixel in images smaller than this, every fourth in others


def shrink_unshared(
    mean: Float[Tensor, "image channel height width"],
    aligned: Float[Tensor, "seed image channel height width"],
    weights: Float[Tensor, " seed"],
) -> Float[Tensor, "image channel height width"]:
    """The mean, with each coefficient of its patches' cosine transform shrunk by the share that seeds disagree on.

    Differences ``D_k = sum_i c_ik x_i`` with ``sum_i c_ik = 0`` and ``|c_k| = |w|`` hold nothing that all seeds show,
    and as much of everything else as the mean does: ``E = mean_k |D_k|^2`` is the noise of the mean, per frequency and
    colour over the image, scaled patch by patch. The coefficients above 2.7 deviations make a first estimate P, then
    ``M P^2 / (P^2 + E)`` is the answer (the two passes of Dabov et al., "Image denoising by sparse 3-D
    transform-domain collaborative filtering", TIP 2007, without matching of blocks). A patch's mean is kept as it is.

    Args:
        mean: An average of ``aligned``.
        aligned: Registered candidates, any linear pixel scale.
        weights: Share of each seed, summing to 1.
    """
    if aligned.shape[0] < 2:
        return mean
    step = 2 if min(mean.shape[-2:]) < _DENSE_BELOW else 4
    differences = torch.einsum("ks,sbchw->kbchw", _contrasts(weights), aligned)
    patches = _transform(torch.cat([mean[None], differences]), step)
    signal, noise = patches[0], _noise(patches[1:])
    first = signal * (signal.square() > _THRESHOLD**2 * noise)
    first[..., 0, :] = signal[..., 0, :]
    pilot = _transform(_inverse(first, mean, step)[None], step)[0].square()
    gain = pilot / (pilot + noise).clamp_min(1e-30)
    gain[..., 0, :] = 1
    return _inverse(signal * gain, mean, step)


def disagreement(
    mean: Float[Tensor, "image channel height width"],
    aligned: Float[Tensor, "seed image channel height width"],
    weights: Float[Tensor, " seed"],
) -> Float[Tensor, " image"]:
    """The deviation of the mean's noise, read off the seeds' differences, over that of the mean over its pixels.

    Args:
        mean: An average of ``aligned``.
        aligned: Registered candidates of at least two seeds, any linear pixel scale.
        weights: Share of each seed, summing to 1.
    """
    differences = torch.einsum("ks,sbchw->kbchw", _contrasts(weights), aligned)
    noise = differences.square().mean(dim=(0, 2, 3, 4))
    contrast = (mean - mean.mean(dim=(-2, -1), keepdim=True)).square().mean(dim=(1, 2, 3))
    # A flat picture shows nothing beside its noise.
    return (noise / contrast.clamp_min(1e-30)).sqrt()


def _contrasts(weights: Float[Tensor, " seed"]) -> Float[Tensor, "contrast seed"]:
    """Rows that sum to zero and are as long as the weights: the lowest cosines over the seeds."""
    count = weights.shape[0]
    place = (torch.arange(count, device=weights.device) + 0.5) * (math.pi / count)
    order = torch.arange(1, min(_CONTRASTS, count - 1) + 1, device=weights.device)
    rows = torch.cos(order[:, None] * place)
    return rows / rows.norm(dim=1, keepdim=True) * weights.norm()


def _noise(differences: Float[Tensor, "contrast image channel coefficient patch"]) -> Tensor:
    """Variance per coefficient of each patch: the image's spectrum of noise, scaled to the patch's own level."""
    energy = differences.square().mean(0)
    spectrum = energy.mean(-1, keepdim=True)
    own = energy[..., 1:, :].sum(-2, keepdim=True) / spectrum[..., 1:, :].sum(-2, keepdim=True).clamp_min(1e-30)
    return spectrum * own


@lru_cache(maxsize=8)
def _basis(device: torch.device, dtype: torch.dtype) -> Float[Tensor, "coefficient pixel"]:
    """The orthonormal two-dimensional cosine basis of a patch (DCT-II); the first row is its mean."""
    place = (torch.arange(_SIDE, device=device, dtype=dtype) + 0.5) * (math.pi / _SIDE)
    rows = torch.cos(torch.arange(_SIDE, device=device, dtype=dtype)[:, None] * place) * math.sqrt(2 / _SIDE)
    rows[0] /= math.sqrt(2)
    return torch.kron(rows, rows)


@lru_cache(maxsize=8)
def _opponents(device: torch.device, dtype: torch.dtype) -> Float[Tensor, "3 3"]:
    """Brightness and two opponent colours, orthonormal: photos have most of their energy in the first."""
    rows = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]], device=device, dtype=dtype)
    return rows / rows.norm(dim=1, keepdim=True)


def _transform(images: Float[Tensor, "*batch channel height width"], step: int) -> Tensor:
    """Cosine coefficients of overlapping patches by opponent colour, `(*batch, channel, coefficient, patch)`."""
    lead, channels = images.shape[:-3], images.shape[-3]
    if channels == 3:
        images = torch.einsum("dc,...chw->...dhw", _opponents(images.device, images.dtype), images)
    flat = images.reshape(-1, 1, *images.shape[-2:])
    patches = F.unfold(F.pad(flat, _padding(images, step), mode="replicate"), _SIDE, stride=step)
    return (_basis(images.device, images.dtype) @ patches).reshape(*lead, channels, _SIDE * _SIDE, -1)


def _inverse(coefficients: Float[Tensor, "image channel coefficient patch"], like: Tensor, step: int) -> Tensor:
    """Images from the coefficients of overlapping patches, averaged where they overlap."""
    padding = _padding(like, step)
    size = (like.shape[-2] + padding[2] + padding[3], like.shape[-1] + padding[0] + padding[1])
    patches = _basis(like.device, like.dtype).T @ coefficients.flatten(0, 1)
    total = F.fold(patches, size, _SIDE, stride=step)
    share = F.fold(torch.ones_like(patches[:1]), size, _SIDE, stride=step)
    images = (total / share)[:, 0, padding[2] : size[0] - padding[3], padding[0] : size[1] - padding[1]]
    images = images.reshape(like.shape)
    if like.shape[-3] == 3:
        images = torch.einsum("dc,bdhw->bchw", _opponents(like.device, like.dtype), images)
    return images


def _padding(images: Tensor, step: int) -> tuple[int, int, int, int]:
    """Pixels to repeat at (left, right, top, bottom) so that patches cover every pixel about equally often."""
    height, width = images.shape[-2:]
    edge = _SIDE // 2
    return edge, edge + -width % step, edge, edge + -height % step

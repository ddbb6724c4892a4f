"""How like the private images a reconstruction is. Every pixel here is in [0, 1].

Shape letters: batch (B), channel (C), height (H), width (W).
"""

from __future__ import annotations

from collections import Counter

import torch
from jaxtyping import Float, Int
from torch import Tensor

SMALLEST_SSIM_SIDE = 6
"""SSIM's 11-pixel window reaches 5 pixels over the border by reflection, which needs a longer side than 5."""


def psnr(
    images: Float[Tensor, "batch channel height width"], true: Float[Tensor, "batch channel height width"]
) -> Float[Tensor, " batch"]:
    """Peak signal-to-noise ratio of each image in dB, ``-10 log10(mean((x - y)^2))`` with a peak of 1.

    Args:
        images: the reconstruction, in [0, 1].
        true: the private images in the same order, in [0, 1].

    Returns:
        One value per image in float64; ``inf`` where the two are equal to the bit.

    Raises:
        ValueError: the shapes differ.
    """
    _require_same_shape(images, true)
    squared_error = (images.double() - true.double()).square().flatten(1).mean(1)
    return -10 * torch.log10(squared_error)


def ssim(
    images: Float[Tensor, "batch channel height width"], true: Float[Tensor, "batch channel height width"]
) -> Float[Tensor, " batch"]:
    """Structural similarity of each image (Wang et al., IEEE TIP 2004, equation 13), averaged over pixels and channels.

    Gaussian window of 11 pixels (sigma 1.5), ``K1 = 0.01``, ``K2 = 0.03``, data range 1, computed by torchmetrics.

    Args:
        images: the reconstruction, in [0, 1].
        true: the private images in the same order, in [0, 1].

    Returns:
        One value in [-1, 1] per image, 1 where the two are equal; ``nan`` when a side is under 6 pixels.

    Raises:
        ValueError: the shapes differ.
    """
    _require_same_shape(images, true)
    if min(images.shape[-2:]) < SMALLEST_SSIM_SIDE:
        return torch.full((len(images),), torch.nan, dtype=torch.float64)
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(images.double(), true.double(), data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)
    return values.reshape(len(images))


def fft2d(
    images: Float[Tensor, "batch channel height width"], true: Float[Tensor, "batch channel height width"]
) -> Float[Tensor, " batch"]:
    """Relative distance between the magnitudes of the 2-D Fourier spectra of each image; 0 is best.

    With ``F`` the 2-D discrete Fourier transform of one channel, the sums over channels and all frequencies
    (the constant term included)::

        FFT2D(x, y) = sqrt( sum (|F(x)| - |F(y)|)^2 ) / sqrt( sum |F(y)|^2 )

    It compares what the image is made of without asking where it stands: a circular shift costs nothing.

    Note:
        Yin et al. (CVPR 2021) list an FFT2D column (lower is better) among the image metrics of GradInversion. This
        normalisation is ours, so compare values of this program with each other and not with the paper's table.

    Args:
        images: the reconstruction, in [0, 1].
        true: the private images in the same order, in [0, 1].

    Returns:
        One value per image, 0 or more; ``inf`` (or ``nan`` when both are) where the private image is all black.

    Raises:
        ValueError: the shapes differ.
    """
    _require_same_shape(images, true)
    spectrum: Tensor = torch.fft.fft2(images.double()).abs()
    true_spectrum: Tensor = torch.fft.fft2(true.double()).abs()
    distance = (spectrum - true_spectrum).square().flatten(1).sum(1).sqrt()
    return distance / true_spectrum.square().flatten(1).sum(1).sqrt()


def constant_images(
    true: Float[Tensor, "batch channel height width"],
) -> Float[Tensor, "batch channel height width"]:
    """Each image replaced by its own mean per channel: the best constant image there is, and the floor of the audit."""
    return true.mean((2, 3), keepdim=True).expand_as(true)


def label_accuracy(labels: Int[Tensor, " found"], true: Int[Tensor, " batch"]) -> float:
    """Share of the private labels that were recovered, as multisets: ``|recovered and true| / B``, in [0, 1].

    A gradient holds no order, so only how often each class occurs counts.

    Raises:
        ValueError: the batch is empty.
    """
    if not len(true):
        raise ValueError("No private label was given; label accuracy needs a batch of at least one image.")
    return (len(true) - wrong_labels(labels, true)) / len(true)


def wrong_labels(labels: Int[Tensor, " found"], true: Int[Tensor, " batch"]) -> int:
    """How many private labels were not recovered, as multisets."""
    return len(true) - (Counter(labels.tolist()) & Counter(true.tolist())).total()


def _require_same_shape(images: Tensor, true: Tensor) -> None:
    if images.ndim != 4 or images.shape != true.shape:
        raise ValueError(
            f"The images have shape {tuple(images.shape)} and the private images {tuple(true.shape)}; "
            "both must be (batch, channel, height, width) and equal, so give the batch that made the update."
        )

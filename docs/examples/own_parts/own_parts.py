"""One plug-in of each kind: a prior, a label rule, a way to register, a defence and a decoder.

Called by the names of this file, from this folder:

    gradinversion objective.priors=own_parts:curvature:0.05 labels=own_parts:by_bias \
        registration.method=own_parts:translations client.defence=own_parts:signs out=own

or, once `pip install .` has told their entry points, by short names: `objective.priors=curvature:0.05 labels=by_bias`.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from gradinversion import FinalLayer, RecoveredLabels
from torch import Tensor, nn


def curvature(images: Tensor) -> Tensor:
    """A prior: the mean square of the discrete Laplacian, which natural images have little of."""
    sides = images[..., 1:-1, :-2] + images[..., 1:-1, 2:] + images[..., :-2, 1:-1] + images[..., 2:, 1:-1]
    return (sides - 4 * images[..., 1:-1, 1:-1]).square().mean()


def by_bias(layer: FinalLayer, image_count: int) -> RecoveredLabels:
    """A label rule: the classes with the lowest gradient of the bias (iDLG, Zhao et al. 2020)."""
    gradient = layer.bias_gradient if layer.bias_gradient is not None else layer.weight_gradient.sum(dim=1)
    lowest, labels = gradient.topk(min(image_count, len(gradient)), largest=False)
    if len(labels) < image_count:  # each class once at most: the rest is a guess
        labels = labels.repeat(-(-image_count // len(labels)))[:image_count]
    confidence = torch.zeros(image_count)
    confidence[: len(lowest)] = (lowest < 0).float()
    return RecoveredLabels(labels, confidence, "by_bias", "Every image has a label of its own.")


def translations(candidates: Tensor) -> Tensor:
    """A way to register: each candidate shifted by whole pixels to where it agrees best with the mean of all."""
    grey = candidates.mean(dim=2)
    grey = grey - grey.mean(dim=(-2, -1), keepdim=True)
    height, width = grey.shape[-2:]
    agreement = torch.fft.ifft2(torch.fft.fft2(grey) * torch.fft.fft2(grey.mean(dim=0)).conj()).real
    best = agreement.flatten(-2).argmax(dim=-1)
    shifts = torch.stack([best % width, best // width], dim=-1)
    size = torch.tensor([width, height])
    shifts = torch.where(shifts > size // 2, shifts - size, shifts).to(candidates)
    return shifts[:, :, None, None].expand(*grey.shape, 2)


def signs(gradients: Mapping[str, Tensor], strength: float, generator: torch.Generator) -> dict[str, Tensor]:
    """A defence: the sign of each entry times the mean magnitude of its tensor (signSGD, Bernstein et al. 2018)."""
    return {name: gradient.sign() * gradient.abs().mean() for name, gradient in gradients.items()}


def small_network(
    photos: Tensor, features_of: Callable[[Tensor], list[Tensor]]
) -> Callable[[Sequence[Tensor]], Tensor]:
    """A decoder: two convolutions from features, brought to the images' size, to pixels; a minute of training."""
    size = photos.shape[-2:]

    def together(features: Sequence[Tensor]) -> Tensor:
        return torch.cat([F.interpolate(one, size, mode="bilinear") for one in features], dim=1)

    known = together(features_of(photos))
    scale = known.std(dim=(0, 2, 3), keepdim=True).clamp_min(1e-6)
    network = nn.Sequential(
        nn.Conv2d(known.shape[1], 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, photos.shape[1], 3, padding=1)
    )
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(100):
        some = torch.arange(step * 8, step * 8 + 8) % len(photos)
        optimiser.zero_grad()
        F.mse_loss(network(known[some] / scale), photos[some]).backward()
        optimiser.step()
    return lambda features: network(together(features) / scale)

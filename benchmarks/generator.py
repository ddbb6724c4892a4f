"""A small image generator for `preset=latent_projection`, trained in seconds on photos that no cell attacks.

    python -m benchmarks.generator generator.safetensors      # train it; then, in the folder of the checkout:
    PYTHONPATH=. python run.py preset=latent_projection agents.generator=benchmarks.generator:build \\
        agents.generator_weights=generator.safetensors

``G(z) = sigmoid(mean + sum_k z_k d_k s_k)``: the principal components of the logits of image crops, scaled so that
``z ~ N(0, 1)`` has their statistics. Crops of all sizes, flips and colours of the pictures in `PICTURES`, which ship
with scikit-image and are none of those in ``photos.py``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

PICTURES = ("camera", "coins", "hubble_deep_field", "immunohistochemistry", "moon", "retina", "stereo_motorcycle")
COMPONENTS, CROPS = 384, 4000
# Black and white have no logit.
_MARGIN = 0.02


class CropGenerator(nn.Module):
    """See above.

    Args:
        image_shape: Channels, height, width.
        components: Length of a latent.
    """

    def __init__(self, image_shape: Sequence[int], components: int = COMPONENTS) -> None:
        super().__init__()
        self.latent_shape, self.image_shape = (components,), tuple(image_shape)
        self.decode = nn.Linear(components, math.prod(image_shape))

    def forward(self, latents: Tensor) -> Tensor:
        """Images ``(batch, channels, height, width)`` in [0, 1] of latents ``(batch, components)``."""
        return self.decode(latents).sigmoid().unflatten(1, self.image_shape)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Take the principal components of images in [0, 1]."""
        logits = images.clamp(_MARGIN, 1 - _MARGIN).logit().flatten(1)
        mean = logits.mean(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, scales, directions = torch.pca_lowrank(logits - mean, q=self.latent_shape[0], center=False)
        self.decode.bias.copy_(mean)
        self.decode.weight.copy_(directions * scales / math.sqrt(len(images)))


def build(image_shape: Sequence[int]) -> CropGenerator:
    """What `agents.generator` names."""
    return CropGenerator(image_shape)


def train(side: int = 32) -> CropGenerator:
    """The generator of the benchmark."""
    generator = CropGenerator((3, side, side))
    generator.fit(crops(side, CROPS))
    return generator.eval()


def crops(side: int, count: int, seed: int = 0) -> Tensor:
    """Crops in [0, 1] of the pictures in `PICTURES`, scaled to ``side`` pixels.

    Args:
        side: Height and width in pixels.
        count: Of the crops.
        seed: Of places, sizes, flips and colours.
    """
    from skimage import data

    random = np.random.default_rng(seed)
    pictures = []
    for name in PICTURES:
        found = getattr(data, name)()
        picture = torch.from_numpy(np.array(found[0] if isinstance(found, tuple) else found)).float() / 255
        pictures.append(picture.expand(3, -1, -1) if picture.ndim == 2 else picture.permute(2, 0, 1))
    made = []
    for _ in range(count):
        picture = pictures[random.integers(len(pictures))]
        size = round(min(picture.shape[1:]) * 2 ** random.uniform(-3, 0))
        top, left = (random.integers(0, extent - size + 1) for extent in picture.shape[1:])
        crop = picture[:, top : top + size, left : left + size]
        crop = F.interpolate(crop[None], (side, side), mode="bilinear", antialias=True)[0].clamp(0, 1)
        crop = crop.flip(-1) if random.random() < 0.5 else crop
        # Of another colour and contrast: there are few pictures, and many are gray.
        gain = torch.from_numpy(2 ** random.normal(0, 0.4, 3)).float()[:, None, None]
        made.append(crop[torch.from_numpy(random.permutation(3))] ** gain)
    return torch.stack(made)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a .safetensors file")
    parser.add_argument("--size", type=int, default=32, help="of the images, in pixels")
    options = parser.parse_args()
    save_file(train(options.size).state_dict(), options.out)
    print(f"{options.out}: {COMPONENTS} latents, {options.size} px")


if __name__ == "__main__":
    main()

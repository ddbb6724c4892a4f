"""ResNet-18 with a 3x3 stem, trained on crops of photos that are not among the attacked ones.

    python -m benchmarks.trained     # trains once, about a minute of one core, and says how well

Each of six photos is a class: a square crop of it, at any scale from a third on and mirrored or not, is to be told by
the photo that it is of. Weights are kept in ``build/``, which git ignores.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from gradinversion.capture import IMAGENET
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .networks import cifar_resnet18
from .photos import WHOLE, named_photos

CACHE = Path(__file__).resolve().parents[1] / "build" / "trained" / "cifar_resnet18.safetensors"
CLASSES = len(WHOLE)
SIZE = 32
# Steps of training, images of one step, the highest rate, and the accuracy that is asked for.
_STEPS, _BATCH, _RATE, _ACCURACY = 160, 24, 1.5e-3, 0.9
# Crops of which the accuracy is told, and the smallest crop, as a share of the photo's shorter side.
_SEEN, _SMALLEST = 240, 1 / 3


def trained_cifar_resnet18(cache: Path = CACHE) -> nn.Module:
    """The network in evaluation mode.

    Args:
        cache: Where the weights are, or are written to.

    Raises:
        RuntimeError: Training ended at less than 90 % of the crops.
    """
    torch.manual_seed(0)
    model = cifar_resnet18(CLASSES)
    if not cache.exists():
        _train(model)
        found = accuracy(model)
        if found < _ACCURACY:
            raise RuntimeError(f"training ended at {found:.0%} of the crops, and {_ACCURACY:.0%} are asked for.")
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), cache)
    model.load_state_dict(load_file(cache))
    return model.eval()


def accuracy(model: nn.Module) -> float:
    """The share of crops, drawn as those of training are, that the network tells."""
    images, labels = _crops(_SEEN, seed=1_000_000)
    with torch.no_grad():
        told = torch.cat([model.eval()(some).argmax(dim=1) for some in images.split(_BATCH)])
    return float((told == labels).double().mean())


def _train(model: nn.Module) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), _RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=_STEPS)
    model.train()
    for step in range(_STEPS):
        images, labels = _crops(_BATCH, seed=step)
        optimiser.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()
        schedule.step()


def _crops(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """As the model is given them, as many of each class, with their labels."""
    random = np.random.default_rng(seed)
    pictures, found = list(named_photos().values()), []
    for index in range(count):
        picture = pictures[index % CLASSES]
        height, width = picture.shape[:2]
        side = round(random.uniform(_SMALLEST, 1) * min(height, width))
        top, left = random.integers(0, height - side + 1), random.integers(0, width - side + 1)
        square = Image.fromarray(picture[top : top + side, left : left + side])
        small = np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        found.append(small[:, ::-1] if random.random() < 0.5 else small)
    pixels = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255
    return IMAGENET.apply(pixels), torch.arange(count) % CLASSES


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{accuracy(trained_cifar_resnet18()):.1%} of the crops told")

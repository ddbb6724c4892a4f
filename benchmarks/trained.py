"""ResNet-18 with a 3x3 stem, trained on crops of photos that are not among the attacked ones.

    python -m benchmarks.trained     # trains once, about two minutes of one core, and says how well

Each half of six photos is a class, and a crop of it at any scale, mirrored or not, with its colours exchanged and
varied, is to be told by the half that it is of. Weights are kept in ``build/``, which git ignores.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from gradinversion.capture import IMAGENET
from gradinversion.peeling.cut import photo_crops
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .networks import cifar_resnet18
from .photos import WHOLE, named_photos

CACHE = Path(__file__).resolve().parents[1] / "build" / "trained" / "cifar_resnet18.safetensors"
CLASSES = 2 * len(WHOLE)
SIZE = 32
# Steps of training, images of one step, the highest rate, and the accuracy that is asked for.
_STEPS, _BATCH, _RATE, _ACCURACY = 320, 24, 2e-3, 0.9
_SEEN = 240


def trained_cifar_resnet18(cache: Path = CACHE) -> nn.Module:
    """The network in evaluation mode.

    Args:
        cache: Where the weights are, or are written to.

    Raises:
        RuntimeError: Training ended at less than 90 % of the crops.
    """
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
    torch.manual_seed(0)
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
    images = photo_crops(_halves(), (SIZE, SIZE), count, seed)
    return IMAGENET.apply(images), torch.arange(count) % CLASSES


def _halves() -> list[Tensor]:
    found = []
    for picture in named_photos().values():
        pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
        found += list(pixels.tensor_split(2, dim=2))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{accuracy(trained_cifar_resnet18()):.1%} of the crops told")

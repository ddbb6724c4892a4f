"""The data and the classifier of the worked audit: ten kinds of small pictures that ship in packages.

    python docs/audit-example/prepare.py [folder]     # build/audit-example by default; half a minute

Kinds: faces (`skimage.data.lfw_subset`, 25 x 25 px, gray) and crops of nine photographs of scikit-image. The left
three quarters of each photograph (and the first 60 faces) are for training; what the client holds comes from the rest,
one picture of each kind, so that its labels are 0, 1, 2, ... So does the pool of other pictures, four of each kind,
that the audit needs for its controls. The folder then holds `train/KIND/*.png`, `client/*.png`, `pool/*.png`, and the
weights of the bundled ConvNet in two stages of its training, `early.safetensors` and `late.safetensors`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from gradinversion.capture import load_images, load_model
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from torch import Tensor, nn

SIDE = 32
PHOTOS = ("coins", "rocket", "brick", "gravel", "astronaut", "chelsea", "coffee", "grass", "retina")
TRAINING_CROPS, TRAINING_FACES = 120, 60
OTHERS = 4
STAGES = {"early": 20, "late": 300}


def crops(photo: np.ndarray, count: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Squares of a half to the whole of the shorter side of this part of a photograph, anywhere in it."""
    found = []
    height, width = photo.shape[:2]
    for _ in range(count):
        side = int(generator.integers(min(height, width) // 2, min(height, width) + 1))
        top, left = (int(generator.integers(0, size - side + 1)) for size in (height, width))
        found.append(photo[top : top + side, left : left + side])
    return found


def pictures(generator: np.random.Generator) -> dict[str, tuple[list[np.ndarray], list[np.ndarray]]]:
    """For each kind the pictures to train on, and those kept from training: the client's, then the pool's."""
    faces = [(255 * face).astype(np.uint8) for face in data.lfw_subset()[:100]]
    kinds = {"face": (faces[:TRAINING_FACES], faces[TRAINING_FACES + 5 : TRAINING_FACES + 6 + 5 * OTHERS : 5])}
    for name in PHOTOS:
        photo = np.asarray(getattr(data, name)())
        border = 3 * photo.shape[1] // 4
        training = crops(photo[:, :border], TRAINING_CROPS, generator)
        kinds[name] = training, crops(photo[:, border:], 1 + OTHERS, generator)
    return kinds


def write(picture: np.ndarray, path: Path) -> None:
    """A colour PNG of 32 x 32 px."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(picture)).convert("RGB").resize((SIDE, SIDE)).save(path)


def train(folder: Path, kinds: list[str]) -> None:
    """Train the bundled ConvNet and keep its weights at each stage."""
    sets = []
    for kind in kinds:
        count = len(list((folder / "train" / kind).iterdir()))
        sets.append(load_images(str(folder / "train" / kind), count, SIDE)[0])
    model = load_model("convnet", classes=len(kinds), seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.cat(sets), torch.cat([torch.full((len(s),), k) for k, s in enumerate(sets)])
    model.train()
    for step in range(1, max(STAGES.values()) + 1):
        chosen = torch.randint(0, len(images), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(normalise(images[chosen])), labels[chosen]).backward()
        optimizer.step()
        for stage, last in STAGES.items():
            if step == last:
                state = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
                save_file(state, folder / f"{stage}.safetensors")
                print(f"{stage}: {step} steps, {accuracy(model, images, labels):.1%} of the training pictures right")


def normalise(images: Tensor) -> Tensor:
    """As the simulated client feeds the model."""
    from gradinversion.capture import IMAGENET

    return IMAGENET.apply(images)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """In evaluation mode."""
    model.eval()
    right = float((model(normalise(images)).argmax(1) == labels).float().mean())
    model.train()
    return right


def main() -> None:
    """Write everything into the folder."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build/audit-example")
    torch.manual_seed(0)
    found = pictures(np.random.default_rng(0))
    for index, (kind, (training, held)) in enumerate(found.items()):
        for number, picture in enumerate(training):
            write(picture, folder / "train" / f"{index}-{kind}" / f"{number:03}.png")
        write(held[0], folder / "client" / f"{index}-{kind}.png")
        for number, picture in enumerate(held[1:]):
            # By number first: the first pictures of the pool are one of each kind, as the client's are.
            write(picture, folder / "pool" / f"{number}-{index}-{kind}.png")
    train(folder, [f"{index}-{kind}" for index, kind in enumerate(found)])


if __name__ == "__main__":
    main()

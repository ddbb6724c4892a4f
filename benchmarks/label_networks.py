"""Trained networks for the benchmark of labels: two tasks from data that ships in packages, caught at stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from gradinversion.capture import IMAGENET, load_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SIZE = 32
STAGES = (0.0, 0.1, 0.5, 0.9, 0.99)
"""Training accuracies at which a network is caught; 0 is the untrained network."""
_BATCH = 64
_CHECK_EVERY = 5
_MOST_EPOCHS = 100
# Photo, rows and columns of its grid: 100 regions, each a class.
_GRIDS = (
    ("astronaut", 3, 3),
    ("chelsea", 2, 4),
    ("coffee", 2, 5),
    ("rocket", 2, 5),
    ("china", 3, 4),
    ("flower", 3, 4),
    ("immunohistochemistry", 3, 3),
    ("retina", 3, 3),
    ("hubble_deep_field", 3, 3),
    ("motorcycle", 3, 4),
)


@dataclass(frozen=True)
class Task:
    """Labelled images in [0, 1] of shape (N, 3, 32, 32); the held-out part is never trained on."""

    name: str
    classes: int
    images: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor
    learning_rate: float


def digits() -> Task:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, ten classes, resized; every fifth is held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float()[:, None] / 16
    images = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(bunch.target).long()
    held_out = torch.arange(len(labels)) % 5 == 0
    return Task("digits", 10, images[~held_out], labels[~held_out], images[held_out], labels[held_out], 1e-4)


def regions(per_class: int = 30, held_out: int = 10) -> Task:
    """One hundred regions of natural photos, each a class: crops of random place and scale, mirrored, recoloured.

    Crops that are held out come from the same regions, drawn apart.
    """
    generator = torch.Generator().manual_seed(0)
    train: list[Tensor] = []
    other: list[Tensor] = []
    for region in _regions():
        views = [_view(region, generator) for _ in range(per_class + held_out)]
        train += views[:per_class]
        other += views[per_class:]
    labels = torch.arange(100)
    return Task(
        "regions",
        100,
        torch.stack(train),
        labels.repeat_interleave(per_class),
        torch.stack(other),
        labels.repeat_interleave(held_out),
        1e-3,
    )


def _regions() -> Iterator[Tensor]:
    for name, rows, columns in _GRIDS:
        picture = torch.from_numpy(np.array(_photo(name)[..., :3])).permute(2, 0, 1).float() / 255
        height, width = picture.shape[1] // rows, picture.shape[2] // columns
        for row in range(rows):
            for column in range(columns):
                yield picture[:, row * height : (row + 1) * height, column * width : (column + 1) * width]


def _photo(name: str) -> np.ndarray:
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        return np.asarray(load_sample_image(f"{name}.jpg"))
    from skimage import data, io

    if name == "motorcycle":  # the packaged half of a stereo pair; its reader would ask for files that are not packaged
        return np.asarray(io.imread(str(Path(data.__file__).parent / "motorcycle_left.png")))
    return np.asarray(getattr(data, name)())


def _view(region: Tensor, generator: torch.Generator) -> Tensor:
    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    side = int(min(region.shape[1:]) * draw(0.45, 0.95))
    top, left = int(draw(0, region.shape[1] - side)), int(draw(0, region.shape[2] - side))
    crop = region[None, :, top : top + side, left : left + side]
    view = F.interpolate(crop, size=(SIZE, SIZE), mode="bilinear", antialias=True)[0]
    if draw(0, 1) < 0.5:
        view = view.flip(-1)
    tint = torch.tensor([draw(0.8, 1.2) for _ in range(3)])[:, None, None]
    return ((view - 0.5) * draw(0.7, 1.3) + 0.5 + draw(-0.15, 0.15)).mul(tint).clamp(0, 1)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images that the model, in evaluation mode, names right."""
    guesses = torch.cat([model(IMAGENET.apply(part)).argmax(1) for part in images.split(500)])
    return float((guesses == labels).float().mean())


def train_stages(
    network: str, task: Task, seed: int, folder: Path, stages: Sequence[float] = STAGES, whole_until: float = 0.9
) -> dict[float, tuple[nn.Module, float]]:
    """For each stage, the first checked state at or above it, and its accuracy on all training images.

    Stage 0 is the untrained network. Training is Adam with batches of 64; the accuracy is checked every five steps, on
    a tenth of the images and, where that is enough, on all. Beyond ``whole_until``, itself a stage, only the final
    layer is trained on. Weights are kept in ``folder`` and read from there next time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {
        stage: folder / f"{task.name}-{network}-{seed}-{stage}.safetensors" for stage in {*stages, whole_until} - {0.0}
    }

    def keep(stage: float, model: nn.Module) -> None:
        save_file(model.state_dict(), paths[stage])

    whole = sorted({stage for stage in paths if stage <= whole_until})
    if not all(paths[stage].exists() for stage in whole):
        _train(network, task, seed, whole, keep)
    model = load_model(network, task.classes, SIZE)
    model.load_state_dict(load_file(paths[whole[-1]]))
    rest = sorted(stage for stage in paths if stage > whole_until)
    if not all(paths[stage].exists() for stage in rest):
        _train_last_layer(model, task, seed, rest, keep)
    untrained = load_model(network, task.classes, SIZE, seed=seed)
    found = {0.0: (untrained, accuracy(untrained, task.images, task.labels))} if 0.0 in stages else {}
    for stage, path in sorted(paths.items()):
        if stage not in stages:
            continue
        model = load_model(network, task.classes, SIZE)
        model.load_state_dict(load_file(path))
        found[stage] = (model, accuracy(model, task.images, task.labels))
    return found


def _train(
    network: str, task: Task, seed: int, stages: Sequence[float], keep: Callable[[float, nn.Module], object]
) -> None:
    model = load_model(network, task.classes, SIZE, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), task.learning_rate)
    waiting, step = sorted(stages), 0
    for _ in range(_MOST_EPOCHS):
        for chosen in torch.randperm(len(task.labels), generator=generator).split(_BATCH):
            if len(chosen) < _BATCH:
                continue
            model.train()
            optimiser.zero_grad()
            F.cross_entropy(model(IMAGENET.apply(task.images[chosen])), task.labels[chosen]).backward()
            optimiser.step()
            step += 1
            if step % _CHECK_EVERY:
                continue
            model.eval()
            while waiting and _reached(model, task, waiting[0]):
                keep(waiting.pop(0), model)
            if not waiting:
                return
    raise RuntimeError(f"{network} on {task.name} did not reach {waiting[0]:.0%} in {_MOST_EPOCHS} epochs")


def _train_last_layer(
    model: nn.Module, task: Task, seed: int, stages: Sequence[float], keep: Callable[[float, nn.Module], object]
) -> None:
    """The final layer alone, on features that are computed once."""
    generator = torch.Generator().manual_seed(seed)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    kept: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    accuracy(model, task.images, task.labels)
    handle.remove()
    features = torch.cat(kept)
    optimiser, waiting = torch.optim.Adam(last.parameters(), 1e-3), list(stages)
    for _ in range(_MOST_EPOCHS):
        for chosen in torch.randperm(len(task.labels), generator=generator).split(_BATCH):
            optimiser.zero_grad()
            F.cross_entropy(last(features[chosen]), task.labels[chosen]).backward()
            optimiser.step()
        with torch.no_grad():
            right = float((last(features).argmax(1) == task.labels).float().mean())
        while waiting and right >= waiting[0]:
            keep(waiting.pop(0), model)
        if not waiting:
            return
    raise RuntimeError(f"the final layer did not reach {waiting[0]:.0%} on {task.name} in {_MOST_EPOCHS} epochs")


def _reached(model: nn.Module, task: Task, stage: float) -> bool:
    quick = accuracy(model, task.images[::10], task.labels[::10])
    return quick >= stage and accuracy(model, task.images, task.labels) >= stage

"""What a defence costs: the accuracy of a model that is trained on defended gradients, and of one that is not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..capture import BatchNormMode, ImageError, Normalisation, UpdateError, load_model, send_update
from ..capture.client.images import count_images, load_images
from ..capture.copying import copy_model
from ..coordinator import Storage, StorageError
from ..settings.run import RunConfig, settings
from ..storage.json_file import read_json
from ..storage.schema import misfit
from .cell import Progress

_SEEDS = 3
_LEARNING_RATES, _MOMENTUM = (0.02, 0.005, 0.00125), 0.9
"""The first at which training stays finite is taken: batch norm in evaluation mode may not bear the largest."""
_HELD_OUT = 5
"""Every fifth image of a class is kept for the test."""
_MOST_IMAGES = 4000
_TEST_BATCH = 64
_LARGEST_FILE = 2**20
_TOLD = 20
"""Steps between two signs of life."""


@dataclass(frozen=True)
class Accuracy:
    """Of models trained in the same way but for their seed, on the images that were kept for the test."""

    values: tuple[float, ...]
    """In [0, 1], by seed."""
    steps: int
    batch: int
    train_images: int
    test_images: int
    chance: float
    """Share of the most frequent class: what a model that learned nothing reaches."""
    learning_rate: float

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.values)


class _DivergedError(UpdateError):
    """Training began and did not stay finite."""


@dataclass(frozen=True)
class _Data:
    images: Float[Tensor, "image channel height width"]
    labels: Int[Tensor, " image"]
    held_out: Tensor
    """One truth value per image."""


def train_and_test(config: RunConfig, folder: str, steps: int, tell: Callable[[Progress], None]) -> Accuracy | None:
    """Train the client's model with its defence and test it; None where training stays finite at no learning rate.

    The work of a job.

    The server takes plain momentum SGD steps along what the client sends, at the largest of a few learning rates at
    which training stays finite.

    Args:
        config: The client's settings, its weights to start from, its defence.
        folder: With one folder of images per class; the classes are numbered in order of name.
        steps: Updates that the server takes.
        tell: Shown the step.

    Raises:
        ImageError, ModelError, UpdateError: What cannot be used, in one sentence.
    """
    client = config.client
    data = _load(Path(folder).expanduser(), client.classes, client.image_shape)
    for rate in _LEARNING_RATES:
        try:
            values = _values(data, config, rate, steps, tell)
            break
        except _DivergedError:
            continue
    else:
        return None
    counts = torch.bincount(data.labels[data.held_out])
    tested = int(data.held_out.sum())
    return Accuracy(
        values,
        steps,
        client.image_count,
        len(data.labels) - tested,
        tested,
        int(counts.max()) / tested,
        learning_rate=rate,
    )


def _values(
    data: _Data, config: RunConfig, rate: float, steps: int, tell: Callable[[Progress], None]
) -> tuple[float, ...]:
    """The accuracy of each seed's model.

    Raises:
        UpdateError: The client can send nothing, or (`_DivergedError`) training did not stay finite.
    """
    client = config.client
    values = []
    for offset in range(_SEEDS):
        model = load_model(client.model, client.classes, client.image_shape, client.weights, config.seed)
        generator = torch.Generator().manual_seed(config.seed + offset)
        for step in _train(model, data, config, rate, steps, generator):
            if step % _TOLD == 0:
                tell(Progress("training", offset * steps + step, _SEEDS * steps))
        if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
            raise _DivergedError("the last step left weights that are not finite")
        values.append(_test(model, data, BatchNormMode(client.bn), client.normalisation))
    return tuple(values)


def _load(folder: Path, classes: int, size: tuple[int, int, int]) -> _Data:
    if not folder.is_dir():
        raise ImageError(f"sweep.train_images={folder} is no folder: give one that holds a folder of images per class.")
    names = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not 2 <= len(names) <= classes:
        raise ImageError(
            f"sweep.train_images={folder} holds {len(names)} class folders; the model tells {classes} classes apart "
            "(client.classes): give 2 to that many."
        )
    counts = [count_images(str(path)) for path in names]
    if min(counts) < _HELD_OUT:
        raise ImageError(f"{names[counts.index(min(counts))]} holds {min(counts)} images; give at least {_HELD_OUT}.")
    most = _MOST_IMAGES // len(names)
    images, labels, held_out = [], [], []
    for label, (path, count) in enumerate(zip(names, counts, strict=True)):
        found, _ = load_images(str(path), min(count, most), size)
        images.append(found)
        labels.append(torch.full((len(found),), label))
        held_out.append(torch.arange(len(found)) % _HELD_OUT == _HELD_OUT - 1)
    return _Data(torch.cat(images), torch.cat(labels), torch.cat(held_out))


def _train(
    model: nn.Module, data: _Data, config: RunConfig, rate: float, steps: int, generator: torch.Generator
) -> Iterator[int]:
    # The server steps along gradients: local epochs are steps of the client, not a defence.
    client = replace(config.client, local_epochs=0, local_batch_size=0)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.SGD(named.values(), lr=rate, momentum=_MOMENTUM)
    places = torch.nonzero(~data.held_out).flatten()
    for step in range(steps):
        chosen = places[torch.randint(len(places), (client.image_count,), generator=generator)]
        try:
            sent = send_update(client, model, data.images[chosen], data.labels[chosen], generator).gradients
        except UpdateError as error:
            # Before the first step nothing was trained: what is refused then is no matter of the learning rate.
            raise (_DivergedError(str(error)) if step else error) from error
        for name, parameter in named.items():
            parameter.grad = sent[name]
        optimiser.step()
        yield step


@torch.no_grad()
def _test(model: nn.Module, data: _Data, mode: BatchNormMode, normalisation: Normalisation) -> float:
    inputs = normalisation.apply(data.images)
    tested = copy_model(model)
    if mode is not BatchNormMode.EVAL:
        _measure_statistics(tested, inputs[~data.held_out])
    tested.eval()
    right = 0
    for images, labels in zip(
        torch.split(inputs[data.held_out], _TEST_BATCH),
        torch.split(data.labels[data.held_out], _TEST_BATCH),
        strict=True,
    ):
        right += int((tested(images).argmax(1) == labels).sum())
    return right / int(data.held_out.sum())


def _measure_statistics(model: nn.Module, inputs: Tensor) -> None:
    """Give batch-norm layers that were trained on their batches the statistics of the training images."""
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
    model.train()
    for images in torch.split(inputs, _TEST_BATCH):
        if len(images) > 1:
            model(images)


def not_finite() -> str:
    """What is said of a defence with which training stays finite at no learning rate."""
    tried = ", ".join(f"{rate:g}" for rate in _LEARNING_RATES)
    return f"training did not stay finite at any of the learning rates {tried}, so no accuracy is known"


def accuracy_identity(config: RunConfig, folder: str, steps: int) -> dict[str, object]:
    """What decides an accuracy: a stored one counts only for the same."""
    client = {name: value for name, value in settings(config).items() if name.startswith("client.") or name == "seed"}
    return client | {"folder": folder, "steps": steps}


def load_accuracy(storage: Storage, name: str, identity: dict[str, object]) -> Accuracy | None:
    """A stored accuracy; None where there is none of this identity."""
    try:
        facts = read_json(storage.read(_file(name), _LARGEST_FILE))
        found = Accuracy(**facts["accuracy"] | {"values": tuple(facts["accuracy"]["values"])})
        fits = facts["identity"] == identity and misfit(found, Accuracy) is None
    except (StorageError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return found if fits and found.values and all(map(math.isfinite, found.values)) else None


def save_accuracy(storage: Storage, name: str, identity: dict[str, object], accuracy: Accuracy) -> None:
    """Keep an accuracy, so that an audit that goes on need not train again."""
    content = {"identity": identity, "accuracy": asdict(accuracy)}
    storage.write(_file(name), (json.dumps(content, indent=1) + "\n").encode())


def _file(name: str) -> str:
    return f"accuracy/{name.replace(' ', '-').replace('/', '-')}.json"

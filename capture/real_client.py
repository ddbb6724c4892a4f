"""A real client: the model behind its update, and what it trained on where the owner of the data tells it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from jaxtyping import Int
from torch import Tensor, nn

from .client import PrivateBatch, capture_gradient
from .client_config import ClientConfig, ClientError
from .facts import CROSS_ENTROPY, ClientFacts, Penalty, Reduction, Sampling
from .images import class_labels, count_images, load_images
from .label_words import AUTO, folder_labels, parse_labels
from .local_client import train_locally
from .models import build_model, load_model, output_shape
from .private_config import PrivateConfig
from .update import CapturedUpdate, UpdateError, UpdateKind
from .weights import ModelError, fit_names, read_weights

_DEFAULT_CLASSES = ClientConfig.classes


def load_server_model(update: CapturedUpdate, client: ClientConfig, seed: int) -> tuple[nn.Module, int]:
    """The server's model for images of the update's own shape, and the classes that it tells apart.

    Args:
        update: Whose final layer tells the number of classes, with the weights.
        client: Its model, weights and classes; classes left at the default are read off the update.
        seed: Of random weights.

    Raises:
        ModelError: The model cannot be built or loaded, or has other classes than those that are told.
        UpdateError: The update was made with another model.
    """
    classes = _read_classes(update, client, seed)
    if classes != client.classes != _DEFAULT_CLASSES:
        raise ModelError(
            f"client.classes is {client.classes}, and the final layer of the update has {classes} classes; give "
            f"client.classes={classes}, or leave it out"
        )
    model = load_model(client.model, classes, update.image_shape, client.weights, seed)
    update.require_match(model)
    return model, classes


def load_private(config: PrivateConfig, update: CapturedUpdate, classes: int) -> PrivateBatch | None:
    """The images that the settings name, at the update's own shape, with their labels; None where they name none.

    Args:
        config: Of the owner of the data.
        update: That these images are behind.
        classes: Each label must lie in 0 .. classes - 1.

    Raises:
        ImageError, ClientError: They cannot be read, or are not as many as the update's, in one sentence.
    """
    if config.images is None:
        return None
    if config.images.endswith(".safetensors"):
        return _from_file(Path(config.images).expanduser(), config.labels, update, classes)
    _require_count(count_images(config.images), update, config.images)
    images, names = load_images(config.images, update.image_count, update.image_shape)
    found = class_labels(config.images, update.image_count)
    return PrivateBatch(images, _labels(config, found, update.image_count, classes), names)


def resend(
    update: CapturedUpdate, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator | None = None
) -> CapturedUpdate:
    """What the client of this update would have sent for these images, before any defence.

    Args:
        update: Tells how: a gradient or local steps, the normalisation and the batch norm.
        model: The server's model; left as it was.
        images: Pixels in [0, 1].
        labels: One class index per image.
        generator: Draws the orders of shuffled local epochs.

    Raises:
        UpdateError: The update does not tell all that this takes.
    """
    _require_plain(update.facts)
    if update.kind is UpdateKind.GRADIENT:
        return capture_gradient(model, images, labels, normalisation=update.normalisation, batch_norm=update.batch_norm)
    if update.local is None or update.local.learning_rate is None:
        raise UpdateError("the client's learning rate is not known, so its local steps cannot be made again")
    return train_locally(
        model,
        images,
        labels,
        local=update.local,
        normalisation=update.normalisation,
        batch_norm=update.batch_norm,
        generator=generator,
    )


def _require_plain(facts: ClientFacts) -> None:
    """Refuse facts about the loss or the sum that no simulated client has."""
    wanted: dict[str, object] = {
        "loss": CROSS_ENTROPY,
        "reduction": Reduction.MEAN,
        "loss_scale": 1.0,
        "label_smoothing": 0.0,
        "penalty": Penalty(),
        "dropout": False,
        "sampling": Sampling(),
        "clients": 1,
    }
    found = [name.replace("_", " ") for name, value in wanted.items() if getattr(facts, name).value != value]
    if found:
        raise UpdateError(
            f"a client with this {' and '.join(found)} is not simulated, so nothing is sent as it would be"
        )


def _read_classes(update: CapturedUpdate, client: ClientConfig, seed: int) -> int:
    """By the rows in which the update, or else the weights, differ from the model that is built for the told classes.

    Where no tensor differs, by the model's own output: it may not ask for a number of classes.
    """
    model = build_model(client.model, client.classes, update.image_shape, seed)
    ours = model.state_dict()
    theirs = update.gradients
    if client.weights is not None:
        theirs = fit_names(read_weights(client.weights), ours) | theirs
    differing = [name for name in theirs if name in ours and theirs[name].shape != ours[name].shape]
    if not differing:
        found = output_shape(model, client.model, update.image_shape)
        return found[1] if isinstance(found, tuple) and len(found) == 2 else client.classes
    rows = {_other_rows(ours[name], theirs[name], client.classes) for name in differing}
    classes = rows.pop()
    return client.classes if rows or classes is None else classes


def _other_rows(ours: Tensor, theirs: Tensor, classes: int) -> int | None:
    """The rows of a tensor that differs from ours in nothing else, where we have one row per class."""
    alike = ours.ndim == theirs.ndim > 0 and ours.shape[1:] == theirs.shape[1:]
    return theirs.shape[0] if alike and ours.shape[0] == classes else None


def _require_count(found: int, update: CapturedUpdate, source: str) -> None:
    if found != update.image_count:
        raise ClientError(
            f"private.images={source} holds {found} images, and the update is of {update.image_count}; give those that "
            "the client trained on, all of them and no others"
        )


def _labels(config: PrivateConfig, found: Sequence[int] | None, count: int, classes: int) -> Int[Tensor, " batch"]:
    if config.labels != AUTO:
        return parse_labels(config.labels, count, classes, "private.labels")
    if found is None:
        raise ClientError(
            f"nothing tells the labels of private.images={config.images}; give private.labels with one per image in "
            "order of name, such as private.labels=0,0,3, or a folder of class folders"
        )
    return folder_labels(found, classes, str(config.images))


def _from_file(path: Path, words: str, update: CapturedUpdate, classes: int) -> PrivateBatch:
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ClientError(f"private.images={path} cannot be read ({error}); give a .safetensors file") from None
    wanted = {"images", "labels"} if words == AUTO else {"images"}
    if not wanted <= tensors.keys():
        raise ClientError(
            f"private.images={path} holds {', '.join(sorted(tensors)) or 'nothing'}; give the tensors 'images' (in "
            "[0, 1]) and 'labels', or the latter by private.labels"
        )
    images = tensors["images"]
    expected = (update.image_count, *update.image_shape)
    if tuple(images.shape) != expected:
        raise ClientError(f"private.images={path} holds images {tuple(images.shape)}, and the update is of {expected}")
    labels = parse_labels(_words(tensors["labels"]) if words == AUTO else words, len(images), classes, "private.labels")
    return PrivateBatch(images.float(), labels, tuple(f"image {index + 1}" for index in range(len(images))))


def _words(labels: Tensor) -> str:
    return ",".join(str(label) for label in labels.flatten().tolist())

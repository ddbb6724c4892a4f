"""A real client: the model behind its update, and what it trained on where the owner of the data tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..adapters.state_dicts import capture_state_dicts
from ..errors import UpdateError
from ..facts import CROSS_ENTROPY, ClientFacts, Fact, LocalFacts, Penalty, Reduction, Sampling, assumed, told
from ..models import build_model, load_model, output_shape
from ..update import CapturedUpdate
from ..update_kind import UpdateKind
from ..weights import ModelError, fit_names, read_weights
from .config import ClientConfig, ClientError
from .images import class_labels, count_images, load_images
from .label_words import AUTO, folder_labels, parse_labels
from .local_training import train_locally
from .private_config import PrivateConfig
from .simulation import PrivateBatch, applied_defences, capture_gradient

_DEFAULT_CLASSES = ClientConfig.classes
_SETTINGS = "the settings client.*"


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
    classes = _read_classes(update.gradients, client, update.image_shape, seed)
    model = load_model(client.model, classes, update.image_shape, client.weights, seed)
    update.require_match(model)
    return model, classes


def load_checkpoints(before: str, after: str, client: ClientConfig, seed: int) -> tuple[CapturedUpdate, nn.Module, int]:
    """The update between two files of weights, the server's model, and the classes that it tells apart.

    Args:
        before: The weights that the client was sent.
        after: Those that it sent back.
        client: Tells the model, the images and how it trained. Settings that are left at their defaults are assumed,
            except for the number and size of the images, the epochs and the learning rate.
        seed: Of nothing but buffers that the file lacks.

    Raises:
        ModelError: A file cannot be read or does not fit the model.
        UpdateError: The client's weights do not fit, or nothing was trained.
    """
    shape = client.image_shape
    classes = _read_classes(read_weights(before), client, shape, seed)
    model = load_model(client.model, classes, shape, before, seed)
    usual = ClientConfig()
    update = capture_state_dicts(
        model,
        before,
        after,
        image_count=client.image_count,
        image_shape=shape,
        local=_local_facts(client),
        normalisation=client.normalisation if client.mean else None,
        batch_norm=None if client.bn == usual.bn else client.bn,
        model_id=client.model,
        stated=_stated(client),
    )
    return update, model, classes


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


def _local_facts(client: ClientConfig) -> LocalFacts:
    """What the settings tell of the local steps. One that is at its default may just not have been given."""
    usual, training = ClientConfig(), client.local_training()
    assert training is not None
    if not client.learning_rate_known:
        training = replace(training, learning_rate=None)
    facts = LocalFacts.told(training, _SETTINGS)
    keys = {"batch_size": "local_batch_size", "momentum": "momentum"}
    keys |= {"weight_decay": "weight_decay", "shuffled": "shuffled"}
    left = [name for name, key in keys.items() if getattr(client, key) == getattr(usual, key)]
    return replace(facts, **{name: assumed(getattr(facts, name).value) for name in left})


def _stated(client: ClientConfig) -> dict[str, Fact[Any]]:
    defences = applied_defences(client)
    return {"defences": told(defences, _SETTINGS)} if defences else {}


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


def _read_classes(
    tensors: Mapping[str, Tensor], client: ClientConfig, image_shape: tuple[int, int, int], seed: int
) -> int:
    """By the rows in which an update, or else the weights, differ from the model that is built for the told classes.

    Where no tensor differs, by the model's own output: it may not ask for a number of classes.

    Raises:
        ModelError: Other classes than the default were told, and not these.
    """
    model = build_model(client.model, client.classes, image_shape, seed)
    ours = model.state_dict()
    theirs = dict(fit_names(tensors, ours))
    if client.weights is not None:
        theirs = fit_names(read_weights(client.weights), ours) | theirs
    classes = _classes_of(model, ours, theirs, client, image_shape)
    if classes != client.classes != _DEFAULT_CLASSES:
        raise ModelError(
            f"client.classes is {client.classes}, and the final layer of what the client sent has {classes} classes; "
            f"give client.classes={classes}, or leave it out"
        )
    return classes


def _classes_of(
    model: nn.Module,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    client: ClientConfig,
    image_shape: tuple[int, int, int],
) -> int:
    differing = [name for name in theirs if name in ours and theirs[name].shape != ours[name].shape]
    if not differing:
        found = output_shape(model, client.model, image_shape)
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

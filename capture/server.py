"""What the server holds, as the settings of a run name it: its model, and an update between two of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from .adapters.state_dicts import capture_state_dicts
from .client.config import ClientConfig
from .facts import Fact, LocalFacts, assumed, told
from .models import build_skeleton, load_model, output_shape
from .update import CapturedUpdate
from .weights import ModelError, fit_names, read_weights

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
    classes = _read_classes(update.gradients, client, update.image_shape)
    # What a model of the images that the update claims would need is known only to be wanted when its tensors fit.
    update.require_shapes(build_skeleton(client.model, classes, update.image_shape))
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
    classes = _read_classes(read_weights(before), client, shape)
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
    defences = client.applied_defences
    return {"defences": told(defences, _SETTINGS)} if defences else {}


def _read_classes(tensors: Mapping[str, Tensor], client: ClientConfig, image_shape: tuple[int, int, int]) -> int:
    """By the rows in which an update, or else the weights, differ from the model that is built for the told classes.

    Where no tensor differs, by the model's own output: it may not ask for a number of classes.

    Raises:
        ModelError: Other classes than the default were told, and not these.
    """
    model = build_skeleton(client.model, client.classes, image_shape)
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
    if not theirs.keys() & ours.keys():
        return client.classes  # of another model, which is told when the two are compared
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

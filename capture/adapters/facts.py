"""How a client trained, read from the settings that it was sent and the metrics that it sent back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..errors import UpdateError
from ..local_training import LocalTraining

KEYS = {
    "learning_rate": ("lr", "learning-rate", "local-lr", "client-lr"),
    "epochs": ("local-epochs", "epochs", "num-epochs", "local-epoch"),
    "batch_size": ("batch-size", "local-batch-size"),
    "momentum": ("momentum",),
    "weight_decay": ("weight-decay",),
}
"""Under which names each fact of local training is looked for; an underscore counts as a hyphen."""


def read_local_training(*sources: Mapping[str, object]) -> LocalTraining:
    """The local training that settings and metrics tell of; what they do not tell keeps its default.

    Args:
        sources: Names and values; a later one wins.

    Raises:
        UpdateError: A value that cannot be such a fact, in one sentence.
    """
    told = {name.lower().replace("_", "-"): value for source in sources for name, value in source.items()}
    found = {fact: next((told[key] for key in keys if key in told), None) for fact, keys in KEYS.items()}
    epochs, batch_size = _whole("epochs", found["epochs"]), _whole("batch size", found["batch_size"])
    momentum, weight_decay = _number("momentum", found["momentum"]), _number("weight decay", found["weight_decay"])
    return LocalTraining(
        learning_rate=_number("learning rate", found["learning_rate"]),
        epochs=1 if epochs is None else epochs,
        batch_size=batch_size,
        momentum=momentum or 0.0,
        weight_decay=weight_decay or 0.0,
    )


def read_image_count(metrics: Mapping[str, object], key: str) -> int:
    """How many images the client says it trained on.

    Raises:
        UpdateError: It does not say, or it says what cannot be.
    """
    if key not in metrics:
        told = ", ".join(sorted(metrics)) or "nothing"
        raise UpdateError(f"its metrics lack {key!r}, the number of images (they hold {told}); give count_key")
    count = _whole(repr(key), metrics[key])
    if count is None or count < 1:
        raise UpdateError(f"it says that it trained on {metrics[key]} images; at least 1 is needed")
    return count


def within(local: LocalTraining, image_count: int) -> LocalTraining:
    """The same training with a batch no larger than the data: a data loader then makes one batch of all images."""
    if local.batch_size is None or local.batch_size <= image_count:
        return local
    return replace(local, batch_size=None)


def _whole(what: str, value: object) -> int | None:
    number = _number(what, value)
    if number is not None and not number.is_integer():
        raise UpdateError(f"its {what} is {value!r}; it must be a whole number")
    return None if number is None else int(number)


def _number(what: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UpdateError(f"its {what} is {str(value)[:40]!r}; it must be a number")
    try:
        return float(value)
    except OverflowError:
        raise UpdateError(f"its {what} is a number too large to be one") from None

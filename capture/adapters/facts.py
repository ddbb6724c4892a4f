"""How a client trained, read from the settings that it was sent and the metrics that it sent back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import UpdateError
from ..facts import Fact, LocalFacts, told

KEYS = {
    "learning_rate": ("lr", "learning-rate", "local-lr", "client-lr"),
    "epochs": ("local-epochs", "epochs", "num-epochs", "local-epoch"),
    "batch_size": ("batch-size", "local-batch-size"),
    "momentum": ("momentum",),
    "weight_decay": ("weight-decay",),
}
"""Under which names each fact of local training is looked for; an underscore counts as a hyphen."""
_WHOLE = ("epochs", "batch_size")


def read_local_training(*sources: Mapping[str, object], source: str = "the client's settings") -> LocalFacts:
    """The local training that settings and metrics tell of; what they do not tell is assumed.

    Args:
        sources: Names and values; a later one wins.
        source: Whose they are, for the record.

    Raises:
        UpdateError: A value that cannot be such a fact, in one sentence.
    """
    said = {name.lower().replace("_", "-"): value for one in sources for name, value in one.items()}
    found: dict[str, Fact[Any]] = {}
    for name, keys in KEYS.items():
        value = next((said[key] for key in keys if key in said), None)
        if value is not None:
            parse = _whole if name in _WHOLE else _number
            found[name] = told(parse(name.replace("_", " "), value), source)
    facts = LocalFacts(**found)
    facts.training  # noqa: B018 - refuses values that no training has
    return facts


def read_image_count(metrics: Mapping[str, object], key: str) -> int:
    """How many images the client says it trained on.

    Raises:
        UpdateError: It does not say, or it says what cannot be.
    """
    if key not in metrics:
        held = ", ".join(sorted(metrics)) or "nothing"
        raise UpdateError(f"its metrics lack {key!r}, the number of images (they hold {held}); give count_key")
    count = _whole(repr(key), metrics[key])
    if count is None or count < 1:
        raise UpdateError(f"it says that it trained on {metrics[key]} images; at least 1 is needed")
    return count


def within(local: LocalFacts, image_count: int) -> LocalFacts:
    """The same training with a batch no larger than the data: a data loader then makes one batch of all images."""
    size = local.batch_size
    if size.value is None or size.value <= image_count:
        return local
    return replace(local, batch_size=replace(size, value=None))


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

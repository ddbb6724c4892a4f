"""How a client trained, read from the settings that it was sent and the metrics that it sent back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..defences import Defence
from ..errors import UpdateError
from ..facts import Fact, LocalFacts, assumed, local_names, told
from ..told_config import parse_fact

KEYS = {
    "learning_rate": ("lr", "learning-rate", "local-lr", "client-lr"),
    "epochs": ("local-epochs", "epochs", "num-epochs", "local-epoch"),
    "batch_size": ("batch-size", "local-batch-size"),
    "momentum": ("momentum",),
    "weight_decay": ("weight-decay",),
    "shuffled": ("shuffle", "shuffled"),
    "label_smoothing": ("label-smoothing",),
    "normalisation": ("normalisation", "normalization"),
}
"""Under which names each fact is looked for; an underscore counts as a hyphen. A normalisation is a text such as
``0.5,0.5,0.5/0.5,0.5,0.5``, ``imagenet`` or ``none``."""

_PLAIN_SGD = "only local steps of plain SGD can be retraced"


@dataclass(frozen=True)
class Said:
    """What one party said of a client's training."""

    source: str
    """Who, and where, for the record."""
    values: Mapping[str, object]


def read_said(said: Iterable[Said], channels: int = 3) -> dict[str, Fact[Any]]:
    """The facts that settings and metrics tell, by name; what nobody said is not among them.

    Args:
        said: A later one wins.
        channels: Of the client's images.

    Raises:
        UpdateError: A value that cannot be such a fact, or a training that cannot be retraced, in one sentence.
    """
    found: dict[str, Fact[Any]] = {}
    for one in said:
        values = {name.lower().replace("_", "-"): value for name, value in one.values.items()}
        _require_plain_sgd(values)
        for fact, keys in KEYS.items():
            value = next((values[key] for key in keys if values.get(key) is not None), None)
            if value is not None:
                found[fact] = told(_PARSERS[fact](fact, value, channels), one.source)
        if "clipping-norm" in values:
            # Flower's strategies for differential privacy send it; what else the client does they cannot know.
            norm = _number("clipping norm", values["clipping-norm"], channels)
            source = f"{one.source} tells that it clips, and nobody tells what else it does"
            found["defences"] = assumed((Defence("clip", norm),), source)
    return found


def local_facts(found: Mapping[str, Fact[Any]]) -> LocalFacts:
    """Those of local training; what is missing is assumed.

    Raises:
        UpdateError: A value that no training has.
    """
    facts = LocalFacts(**{name: fact for name, fact in found.items() if name in local_names()})
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
    count = _whole(repr(key), metrics[key], 0)
    if count < 1:
        raise UpdateError(f"it says that it trained on {metrics[key]} images; at least 1 is needed")
    return count


def within(local: LocalFacts, image_count: int) -> LocalFacts:
    """The same training with a batch no larger than the data: a data loader then makes one batch of all images."""
    size = local.batch_size
    if size.value is None or size.value <= image_count:
        return local
    return replace(local, batch_size=replace(size, value=None))


def _require_plain_sgd(values: Mapping[str, object]) -> None:
    """Refuse a training of which the record of facts could only tell a part."""
    optimiser = next((values[key] for key in ("optimizer", "optimiser", "optim") if key in values), None)
    if isinstance(optimiser, str) and optimiser.lower().rpartition(".")[2] != "sgd":
        raise UpdateError(f"its optimiser is {optimiser[:40]!r}; {_PLAIN_SGD}")
    for key in ("nesterov", "dampening", "proximal-mu"):
        value = values.get(key)
        if isinstance(value, bool | int | float) and value != 0:
            raise UpdateError(f"its {key} is {value}; {_PLAIN_SGD}")


def _whole(what: str, value: object, channels: int) -> int:
    number = _number(what, value, channels)
    if not number.is_integer():
        raise UpdateError(f"its {what} is {value!r}; it must be a whole number")
    return int(number)


def _number(what: str, value: object, channels: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UpdateError(f"its {_words(what)} is {str(value)[:40]!r}; it must be a number")
    try:
        return float(value)
    except OverflowError:
        raise UpdateError(f"its {_words(what)} is a number too large to be one") from None


def _flag(what: str, value: object, channels: int) -> bool:
    if value not in (0, 1):
        raise UpdateError(f"its {_words(what)} is {str(value)[:40]!r}; it must be true or false")
    return bool(value)


def _text(what: str, value: object, channels: int) -> Any:
    return parse_fact(what, str(value), channels)


def _words(fact: str) -> str:
    return fact.replace("_", " ")


_PARSERS: dict[str, Callable[[str, object, int], Any]] = {
    "learning_rate": _number,
    "epochs": _whole,
    "batch_size": _whole,
    "momentum": _number,
    "weight_decay": _number,
    "shuffled": _flag,
    "label_smoothing": _number,
    "normalisation": _text,
}

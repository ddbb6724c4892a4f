"""What an axis of the grid is to the client: a setting that it may change, or something that it cannot rely on."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Kind(StrEnum):
    """What is varied along an axis. Settings of the client come first, the cheapest to change before the others."""

    BATCH = "batch size"
    BN = "batch-norm mode"
    OTHER = "other key"
    DEFENCE = "defence"
    STATE = "model state"
    """The stage of training at which the update is sent."""
    DATA = "data, task or knowledge"
    """Which images, labels and classes there are, and what the server is told: another one protects nobody."""
    ATTACK = "key of the attack"
    """How much the server tries, and from which seed."""

    @property
    def is_setting(self) -> bool:
        """Whether the client could move along the axis to protect its images; of all others the worst level counts."""
        return self in _SETTINGS


_SETTINGS = (Kind.BATCH, Kind.BN, Kind.OTHER, Kind.DEFENCE)
# Of the keys in client.*, those by which a client changes what it computes and sends. Images, labels, classes and the
# size of the images are the secret and the task themselves; learning_rate_known only says what the server knows; the
# other keys of dp_sgd than its clip are bookkeeping for epsilon. A key that is new counts as no setting until it is
# listed here, so that nothing is recommended by accident.
_OF_THE_CLIENT = frozenset(
    f"client.{name}"
    for name in (
        "model",
        "batch_size",
        "bn",
        "local_epochs",
        "local_batch_size",
        "learning_rate",
        "momentum",
        "weight_decay",
        "shuffled",
        "defence",
        "defence_strength",
        "defence_clip",
        "clients",
    )
)
_BOOKKEEPING = frozenset({"client.dp_sample_rate", "client.dp_steps", "client.dp_delta"})


def kind_of(key: str) -> Kind:
    """What an axis over this key is, where it has no axis of its own in the grid."""
    if key in _OF_THE_CLIENT:
        return Kind.OTHER
    return Kind.DATA if key.startswith("client.") else Kind.ATTACK


def goes_with_a_defence(key: str) -> bool:
    """Whether a key may be part of a defence: what the client sets, or the bookkeeping of its privacy."""
    return key in _OF_THE_CLIENT or key in _BOOKKEEPING


def worst_case_in_words(varied: Iterable[tuple[Kind, str]]) -> str:
    """Why some of what is varied is judged by its worst level and never recommended; empty where there is no such axis.

    Args:
        varied: Kind and title of each axis with more than one level.
    """
    found = list(varied)
    parts = [
        (Kind.STATE, "the model's state"),
        (Kind.DATA, "what the data, the task or the server's knowledge is"),
        (Kind.ATTACK, "how the server attacks"),
    ]
    named = [
        f"{', '.join(titles)} ({meaning})" if kind is not Kind.STATE else meaning
        for kind, meaning in parts
        if (titles := [title for other, title in found if other is kind])
    ]
    if not named:
        return ""
    return (
        f"No settings of the client: {'; '.join(named)}. Settings are judged by the worst over all levels of these, "
        "and none of these levels is offered as a change."
    )

"""Where the update of a run comes from: a simulated client, a file, or two checkpoints; and what each must be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ..capture import ClientConfig, ClientError, PrivateConfig
from ..capture.told_config import ToldConfig

_OF_CHECKPOINTS = ("client.batch_size", "client.image_size", "client.local_epochs", "client.learning_rate")
_INSTEAD = {"client.learning_rate": "client.learning_rate_known"}
UNTRAINED = "client.local_epochs=0: two checkpoints are of a client that trained; give its local epochs, at least 1."
"""What is said where the update between two checkpoints would be of a client that did not train."""


class Origin(Protocol):
    """The settings of a run that say where its update comes from."""

    @property
    def update(self) -> str | None: ...
    @property
    def before(self) -> str | None: ...
    @property
    def after(self) -> str | None: ...
    @property
    def client(self) -> ClientConfig: ...
    @property
    def told(self) -> ToldConfig: ...
    @property
    def private(self) -> PrivateConfig: ...


def origin_problems(run: Origin) -> list[str]:
    """Everything that does not go together, one sentence each."""
    if run.before is not None or run.after is not None:
        return _checkpoint_problems(run)
    if run.update is not None:
        return []
    if run.private.images is not None:
        return [
            f"private.images={run.private.images}: they belong to a captured update; give update=FILE, or name the "
            "images of a simulated client with client.images."
        ]
    if run.told.given:
        named = ", ".join(f"told.{name}" for name in run.told.given)
        return [f"{named}: a simulated client tells everything itself; give update=FILE, or leave it out."]
    try:
        run.client.require_labels()
    except ClientError as error:
        return [str(error)]
    return []


def untold(given: Mapping[str, str]) -> list[str]:
    """What two checkpoints do not tell and the words of a command do not say: a default would be a guess.

    Args:
        given: The words by their keys.
    """
    if not {"before", "after"} & given.keys():
        return []
    missing = [name for name in _OF_CHECKPOINTS if not {name, _INSTEAD.get(name)} & given.keys()]
    if not missing:
        return []
    return [
        f"{', '.join(missing)}: two checkpoints do not tell this; give it as the client had it (for a learning rate "
        "that is not known, client.learning_rate_known=false)."
    ]


def _checkpoint_problems(run: Origin) -> list[str]:
    found = []
    if run.before is None or run.after is None:
        one, other = ("before", "after") if run.after is None else ("after", "before")
        found.append(f"{one}={getattr(run, one)}: give {other}=FILE too; the difference of both is attacked.")
    if run.update is not None:
        found.append(f"update={run.update}: give it, or before=FILE and after=FILE, and not both.")
    if run.client.weights is not None:
        found.append(f"client.weights={run.client.weights}: leave it out; the server's weights are before=FILE.")
    if not run.client.local_epochs:
        found.append(UNTRAINED)
    return found

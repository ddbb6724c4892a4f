"""Settings of a run that are a choice among words, or are written in one way: looked at before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..time_span import seconds_of
from .usage import preset_names

FAIL_ON = ("never", "leak", "weak", "unknown")
EXPORTS = ("csv", "tensorboard", "wandb")
"""The names of `exporting.FORMATS`; to import those takes its time."""


def is_preset_file(name: str) -> bool:
    """Whether a preset is a file and not one of those that ship with the package."""
    return name.lower().endswith((".yaml", ".yml"))


def _preset(name: str) -> str | None:
    if name in preset_names() or is_preset_file(name):
        return None
    return f"preset={name} is not known: choose one of {', '.join(preset_names())}, or give a .yaml file."


def _fail_on(word: str) -> str | None:
    return None if word in FAIL_ON else f"fail_on={word}: give one of {', '.join(FAIL_ON)}."


def _export(names: Sequence[str]) -> str | None:
    strange = [name for name in names if name not in EXPORTS]
    return f"export={','.join(strange)}: choose among {', '.join(EXPORTS)}." if strange else None


def _budget(span: str | None) -> str | None:
    return (
        None if span is None or seconds_of(span) else f"budget={span}: give a time above zero, such as 90s, 10m or 2h."
    )


_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "preset": _preset,
    "fail_on": _fail_on,
    "export": _export,
    "budget": _budget,
}
OFFERED = tuple(_CHECKS)
"""The keys that `strange_word` knows of."""


def strange_word(name: str, value: Any) -> str | None:
    """What to say of a value that is none of those that its key offers; None where it is one, or the key is another.

    Args:
        name: The key, as written on the command line.
        value: Of the key's type.
    """
    return _CHECKS[name](value) if name in _CHECKS else None

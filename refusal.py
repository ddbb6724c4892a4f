"""What a user can mend: the base of every error that ends in a sentence and not in a traceback."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import fields

from .foreign_text import safe_lines


class Refusal(Exception):  # noqa: N818 - its subclasses name what is wrong, and end in Error
    """Something given that cannot be used, or that the machine cannot do now; its message says what to do.

    Each room derives its own errors from this, and from the built-in error that a library would raise. An error of the
    package that derives from it nowhere is a fault of the program.

    What it names may be a stranger's, so it is shown as ``safe_lines`` has it, wherever that is.
    """

    def __str__(self) -> str:
        return safe_lines(super().__str__())


class ConfigError(Refusal, ValueError):
    """Everything that is wrong with a configuration, one line per problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


class Checked:
    """Base of the dataclasses that hold settings: each refuses, when it is made, what it could not carry out.

    Raises:
        ConfigError: What `problems` finds.
    """

    def __post_init__(self) -> None:
        found = _without_their_class(self) or self.problems()
        if found:
            raise ConfigError(found)

    def problems(self) -> list[str]:
        """Every value that cannot be carried out, one sentence each; a sentence names the key in full."""
        raise NotImplementedError


def _without_their_class(config: Checked) -> list[str]:
    """Groups of settings that were given as something else, such as a dictionary: `problems` could not read them."""
    found = []
    for name, kind in _groups(type(config)).items():
        value = getattr(config, name)
        if not isinstance(value, kind):
            found.append(f"{name}={value!r}: give {kind.__name__}(...), and in it what differs from the defaults.")
    return found


def _groups(config: typing.Any) -> dict[str, type]:
    """The fields that are settings of their own, each with its class."""
    hints = typing.get_type_hints(config)
    return {
        entry.name: hints[entry.name]
        for entry in fields(config)
        if isinstance(hints[entry.name], type) and issubclass(hints[entry.name], Checked)
    }

"""A yaml file of a stranger: plain keys and values, of bounded size, and no part of it twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..refusal import ConfigError

LARGEST_BYTES = 256 * 2**10
_MOST_NODES = 2_000
_DEEPEST = 8
_LARGEST_NUMBER = 2**63
_LONGEST_NUMBER = 100
_TEXT = "tag:yaml.org,2002:str"
_ANYTHING_WRONG = (ValueError, yaml.YAMLError, KeyError, IndexError, TypeError, AttributeError, OverflowError)


class _Loader(yaml.SafeLoader):
    """Refuses while it reads what would take memory or time without end."""

    nodes = depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As of the base; a part that is referred to again is refused, since it may hold others that are."""
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it refers to a part of itself by an alias")
        self.nodes += 1
        self.depth += 1
        if self.nodes > _MOST_NODES or self.depth > _DEEPEST:
            raise ValueError(f"it has more than {_MOST_NODES:,} entries, or they lie within each other")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.ScalarNode) and node.tag != _TEXT and len(node.value) > _LONGEST_NUMBER:
            # Numbers to the base of 60 take time that grows with the square of their length.
            raise ValueError(f"it holds a number of {len(node.value):,} characters")
        return node


def read_tree(path: Path) -> dict[str, Any]:
    """The settings in a file; see `parse_yaml`.

    Raises:
        ConfigError: It cannot be read, or holds something else.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is no file")
        with path.open("rb") as file:
            return parse_tree(file.read(LARGEST_BYTES + 1), str(path))
    except OSError as error:
        raise ConfigError([_unreadable(str(path), error)]) from error


def parse_tree(content: bytes, where: str) -> dict[str, Any]:
    """The settings in the content of a file; see `parse_yaml`.

    Args:
        content: Of a yaml file.
        where: Its name, for errors.

    Raises:
        ConfigError: It holds something else.
    """
    try:
        if len(content) > LARGEST_BYTES:
            raise ValueError(f"it has more than {LARGEST_BYTES:,} bytes")
        return parse_yaml(content.decode())
    except ValueError as error:
        raise ConfigError([_unreadable(where, error)]) from error


def parse_yaml(text: str) -> dict[str, Any]:
    """Nested dictionaries with texts as keys, whose leaves are texts, numbers, truths, None and lists of those.

    Raises:
        ValueError: What is wrong.
    """
    try:
        tree = yaml.load(text, _Loader)
    # The constructors of numbers and dates raise whatever they meet.
    except _ANYTHING_WRONG as error:
        raise ValueError(str(error) or type(error).__name__) from None
    if not isinstance(tree, dict | None):
        raise ValueError("it does not hold keys with values")
    _require_plain(tree or {})
    return tree or {}


def _require_plain(value: Any) -> None:
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("it has keys that are no texts")
        for one in value.values():
            _require_plain(one)
    elif isinstance(value, list):
        for one in value:
            _require_plain(one)
    elif not isinstance(value, str | bool | float | None) and not (
        isinstance(value, int) and abs(value) < _LARGEST_NUMBER
    ):
        raise ValueError(f"it holds a {type(value).__name__} that no setting is")


def _unreadable(where: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"{where} cannot be read as a configuration ({reason}): give one that a run wrote."

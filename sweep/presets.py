"""Published attacks, and files of the user's own, as the levels of an axis of the grid."""

from __future__ import annotations

from ..foreign_text import safe
from ..refusal import ConfigError
from ..settings.keys import format_value
from ..settings.offered import is_preset_file
from ..settings.own_code import own_code
from ..settings.run import RunConfig, command_words, load_config, settings

# What a file may say of itself, and what is for the audit to say.
_NOT_HERE = ("preset", "export", "fail_on", "out", "restart", "resume")
_FIXED = {"out", "resume", "update", "before", "after", "private.images", "private.labels", "budget"}


def is_fixed(key: str) -> bool:
    """Whether all cells of a grid have this key's value in common."""
    return key.startswith(("sweep.", "audit.")) or key in _FIXED


def settings_of_preset(config: RunConfig, name: str) -> dict[str, str]:
    """What this preset sets otherwise than the audit's own settings, key by key as words.

    What the user sets otherwise than the preset of the audit holds in every cell, whatever the cell's preset says.

    Args:
        config: Of the audit.
        name: A preset that ships with the package, or a .yaml file.

    Raises:
        ConfigError: It is not known, cannot be read, or does not go together with what the user sets; or it is a file
            that names code which the audit's own settings do not name.
    """
    words = [word for word in command_words(config) if not word.startswith("preset=")]
    found = load_config([f"preset={name}", *words])
    own = own_code(config)
    strange = [f"{key}={safe(value)}" for key, value in own_code(found).items() if own.get(key) != value]
    if strange and is_preset_file(name):
        raise ConfigError(
            [
                f"sweep.axes=preset:{safe(name)} names code that would run here: if you trust it, name it in the "
                f"command too, {' '.join(strange)}."
            ]
        )
    usual, wanted = settings(config), settings(found)
    changed = {
        key: format_value(value) for key, value in wanted.items() if value != usual[key] and key not in _NOT_HERE
    }
    if fixed := [key for key in changed if is_fixed(key)]:
        raise ConfigError([f"sweep.axes=preset:{safe(name)} sets {', '.join(fixed)}: what cannot be varied."])
    return {"preset": name} | changed

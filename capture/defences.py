"""What a client may do to its gradient before sending it: one defence, or several in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..plugins import PluginKind, is_own_code, is_plugin
from ..refusal import Refusal

# These need the images and the model, so the client applies them while it computes its gradient.
FROM_IMAGES = ("dp_sgd", "soteria")
_NAMES = ("none", "noise", "clip", "prune", "quantise", *FROM_IMAGES)


class DefenceError(Refusal, ValueError):
    """A defence that does not exist, a strength that it cannot have, or several that do not go together."""


@dataclass(frozen=True)
class Defence:
    """One defence of those that a client applies."""

    name: str
    """One of those that are known, or a plug-in's: ``module:callable``, or an entry point's name."""
    strength: float = 0.0
    """See ``apply_defence``; of ``dp_sgd`` the noise multiplier, of ``soteria`` the share of the features."""
    clip: tuple[float, ...] = ()
    """``dp_sgd``: largest L2 norm of one image's gradient; several: of each parameter's, in order; empty: not known."""

    @property
    def is_own(self) -> bool:
        """Whether it is code of the user's own."""
        return self.name not in _NAMES


def defence_words(defences: Sequence[Defence]) -> str:
    """Defences as a person reads them; nothing reads them back."""
    return " + ".join(map(_in_words, defences)) or "none"


def _in_words(defence: Defence) -> str:
    words = f"{defence.name} {defence.strength:g}"
    if len(defence.clip) > 1:
        return f"{words}, clip {min(defence.clip):g} to {max(defence.clip):g} by layer"
    return f"{words}, clip {defence.clip[0]:g}" if defence.clip else words


def parse_defences(text: str, strength: float = 0.0) -> tuple[Defence, ...]:
    """The defences that a client applies, in order.

    Args:
        text: A name, whose strength is the other argument; or ``name:strength``, several of them with plus signs
            between, as in ``clip:0.5+noise:0.1``. A plug-in's name may be ``module:callable``, so that
            ``module:callable:0.3`` is one with its strength.
        strength: See above; 0 where the text gives strengths.

    Raises:
        DefenceError: What cannot be read or does not go together, in one sentence.
    """
    words = text.split("+")
    if len(words) == 1 and (":" not in text or taken_apart(text)[1] is None):
        return (_checked(Defence(text, strength)),)
    if strength != 0:
        raise DefenceError(
            f"the defence {text!r} gives its own strength, and client.defence_strength is {strength:g}; leave that out"
        )
    found = tuple(_checked(_parse(word, text)) for word in words)
    problem = _order_problem([one.name for one in found], text) if len(found) > 1 else None
    if problem:
        raise DefenceError(problem)
    return found


def _parse(word: str, text: str) -> Defence:
    name, number = taken_apart(word)
    problem = _name_problem(name)
    if problem:
        raise DefenceError(problem)
    try:
        return Defence(name, 0.0 if number is None and (name == "none" or name not in _NAMES) else float(number or ""))
    except ValueError:
        raise DefenceError(
            f"the defence {text!r} gives no number as the strength of {name!r}; give each one as name:number, as in "
            "clip:0.5+noise:0.1"
        ) from None


def taken_apart(word: str) -> tuple[str, str | None]:
    """The name and the strength in ``name:strength``; the latter is None where a word has none."""
    name, colon, number = word.partition(":")
    if name in _NAMES or not is_own_code(":".join(word.split(":")[:2])):
        return name, number if colon else None
    # A colon within the name.
    parts = word.split(":", 2)
    return ":".join(parts[:2]), parts[2] if len(parts) > 2 else None


def _name_problem(name: str) -> str | None:
    if name in _NAMES or is_plugin(PluginKind.DEFENCE, name):
        return None
    return f"the defence is {name!r}; use one of {', '.join(_NAMES)}, or module:callable"


def _checked(defence: Defence) -> Defence:
    problem = defence_problem(defence.name, defence.strength)
    if problem:
        raise DefenceError(problem)
    return defence


def _order_problem(names: list[str], text: str) -> str | None:
    """Why these cannot follow each other, in one sentence."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        return f"the defence {text!r} names {twice!r} twice; name each one once, with the strength that it is to have"
    if "none" in names:
        return f"the defence {text!r} combines 'none' with others; leave 'none' out"
    from_images = [name for name in names if name in FROM_IMAGES]
    if len(from_images) > 1:
        first, second = from_images
        return (
            f"the defence {text!r} combines {first!r} and {second!r}, which both make the gradient from the images; "
            "keep one of them"
        )
    if from_images and names[0] != from_images[0]:
        return (
            f"the defence {text!r} has {from_images[0]!r} after others, but it makes the gradient from the images, so "
            "nothing can be done to that before it; put it first"
        )
    return None


def defence_names() -> tuple[str, ...]:
    """Every defence that is known by name."""
    return _NAMES


def defence_problem(name: str, strength: float) -> str | None:
    """What is wrong with this defence, in one sentence; None when nothing is."""
    problem = _name_problem(name)
    if problem is not None:
        return problem
    if name not in _NAMES:
        fits = math.isfinite(strength)
        return None if fits else f"the strength of the defence {name!r} is {strength:g}; it must be a finite number"
    allowed = {
        "none": (strength == 0, "0, for there is nothing to be strong"),
        "noise": (math.isfinite(strength) and strength > 0, "a number above 0 (a usual range is 0.01 to 1)"),
        "clip": (math.isfinite(strength) and strength > 0, "a number above 0, the largest L2 norm"),
        "prune": (0 < strength < 1, "a share above 0 and below 1, such as 0.9"),
        "quantise": (strength in range(1, 17), "a whole number of bits from 1 to 16"),
        "dp_sgd": (math.isfinite(strength) and strength >= 0, "the noise multiplier, a number of at least 0"),
        "soteria": (0 < strength < 1, "a share of the features above 0 and below 1, such as 0.1"),
    }
    fits, meaning = allowed[name]
    return None if fits else f"the strength of the defence {name!r} is {strength:g}; it must be {meaning}"

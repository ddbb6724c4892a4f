"""What the user tells of the client behind a captured update: keys ``told.FACT=VALUE``, one for each fact."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from ..refusal import Checked
from .defences import Defence, parse_defences
from .errors import UpdateError
from .facts import BatchNormMode, Fact, Penalty, Reduction, Sampling, assumed, local_names, told
from .normalisation import IMAGENET, Normalisation
from .update import LARGEST_CHANNEL_COUNT, LARGEST_IMAGE_COUNT, CapturedUpdate

_USER = "the user"


@dataclass(frozen=True)
class ToldConfig(Checked):
    """What you know of the client behind a captured update, and nothing where a key is empty; it wins over the file."""

    image_count: str = ""
    """Images that the gradient was averaged over, or that the client trained on."""
    normalisation: str = ""
    """What the pixels were normalised with before the model: MEANS/DEVIATIONS by channel such as
    0.5,0.5,0.5/0.5,0.5,0.5, or one of each for all channels, or imagenet, or none."""
    batch_norm: str = ""
    """Batch norm in the client: eval, train_shared (statistics sent along) or train_private (kept)."""
    dropout: str = ""
    """Whether dropout and stochastic depth were active: true or false."""
    loss: str = ""
    """Name of the loss of one image, such as cross_entropy."""
    reduction: str = ""
    """How the losses of a batch became one number: mean or sum."""
    loss_scale: str = ""
    """What the loss was multiplied with beside its reduction (a loss scaler, accumulated batches); unknown: find it."""
    label_smoothing: str = ""
    """Share of each label that was spread over all classes, such as 0.1."""
    penalty: str = ""
    """Penalty on the weights that is part of the gradient, such as l2:5e-4 or l2:5e-4+l1:1e-5; or none."""
    learning_rate: str = ""
    """Of the client's local steps; unknown: estimate it."""
    epochs: str = ""
    """Passes of the client over its images."""
    batch_size: str = ""
    """Images in each local step, or all."""
    momentum: str = ""
    """Of the client's SGD."""
    weight_decay: str = ""
    """Of the client's SGD."""
    shuffled: str = ""
    """Whether each local epoch had an order of its own: true or false."""
    defences: str = ""
    """What the client did to its update before it was sent, in order, such as clip:1+noise:0.1; or none."""
    sampling: str = ""
    """How each batch was drawn: fixed, or poisson:EXPECTED where each image came by chance and the sum was divided by
    the expected number of them."""
    clients: str = ""
    """Clients whose updates were averaged before the server saw them."""

    def problems(self) -> list[str]:
        """Every value that cannot be such a fact, one sentence each."""
        found = []
        for name in self.given:
            try:
                parse_fact(name, getattr(self, name))
            except UpdateError as error:
                found.append(str(error))
        return found

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the facts that are told."""
        return tuple(one.name for one in fields(self) if getattr(self, one.name) != "")

    @property
    def stated_defences(self) -> tuple[Defence, ...]:
        """The defences that are told, in order; none where nothing is said of them."""
        return _defences(self.defences) if self.defences else ()

    def facts(self, channels: int = 3) -> dict[str, Fact[Any]]:
        """The facts by their names, as every writer of updates takes them in ``stated``.

        Args:
            channels: Of the client's images.
        """
        return {name: _fact(name, parse_fact(name, getattr(self, name), channels)) for name in self.given}


def apply_told(update: CapturedUpdate, told: ToldConfig) -> CapturedUpdate:
    """The update with what the user tells in place of what its file says.

    Raises:
        UpdateError: A fact of local training for a gradient, or facts that contradict each other.
    """
    if not told.given:
        return update
    local = [name for name in told.given if name in local_names()]
    if local and update.facts.local is None:
        named = ", ".join(f"told.{name}={getattr(told, name)}" for name in local)
        raise UpdateError(
            f"{named}: the update is a gradient, which no local step came before; leave that out, or give the weight "
            "delta"
        )
    facts = told.facts(update.image_shape[0])
    count = facts["image_count"].value if "image_count" in facts else update.image_count
    size = facts.get("batch_size")
    if size is not None and size.value is not None and size.value >= count:
        # A data loader makes one batch of all images then.
        facts["batch_size"] = Fact(None, size.provenance, size.source)
    try:
        return update.stating(**facts)
    except UpdateError as error:
        named = ", ".join(f"told.{name}={getattr(told, name)}" for name in told.given)
        raise UpdateError(f"what is told does not go with the update ({named}): {error}") from None


def parse_fact(name: str, text: str, channels: int = 3) -> Any:
    """A fact's value from the words of a user, as ``told.NAME=TEXT`` has them.

    Args:
        name: As in `ClientFacts` or `LocalFacts`.
        text: The words.
        channels: Of the client's images.

    Raises:
        UpdateError: They are no such value, in one sentence with what is allowed.
    """
    if name == "normalisation":
        return _normalisation(text, channels)
    parse, allowed = _PARSERS[name]
    try:
        return parse(text.strip())
    except ValueError as error:
        # A defence says itself what is wrong with it.
        reason = f": {error}" if name == "defences" else f": give {allowed}"
        raise UpdateError(f"told.{name}={text[:80]}{reason}.") from None


def _fact(name: str, value: Any) -> Fact[Any]:
    if name == "learning_rate" and value is None:
        return assumed(None, "the user does not know it")
    return told(value, _USER)


def _normalisation(text: str, channels: int) -> Normalisation:
    words = text.strip().lower()
    if words == "none":
        return Normalisation((0.0,) * channels, (1.0,) * channels)
    if words == "imagenet":
        return IMAGENET
    try:
        mean, std = (tuple(float(number) for number in part.split(",")) for part in words.split("/"))
        if len(mean) > LARGEST_CHANNEL_COUNT:
            raise ValueError
        # One of each holds for every channel.
        mean, std = (part * channels if len(part) == 1 else part for part in (mean, std))
        return Normalisation(mean, std)
    except ValueError:
        raise UpdateError(
            f"told.normalisation={text[:80]}: give as many means as deviations, all finite and the deviations above 0, "
            "such as 0.5,0.5,0.5/0.5,0.5,0.5, or imagenet, or none."
        ) from None


def _number(least: float, most: float = math.inf, *, above: bool = False) -> Callable[[str], float]:
    """A finite number of at least ``least`` (or above it), and below ``most``."""

    def parse(text: str) -> float:
        value = float(text)
        if not (least <= value < most) or (above and value == least):
            raise ValueError(text)
        return value

    return parse


def _or(word: str, parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text.lower() == word else parse(text)


def _whole(most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not 1 <= value <= most:
            raise ValueError(text)
        return value

    return parse


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w{0,79}", text, re.ASCII):
        raise ValueError(text)
    return text


def _penalty(text: str) -> Penalty:
    if text.lower() == "none":
        return Penalty()
    parts = [word.partition(":") for word in text.lower().split("+")]
    names = [name for name, _, _ in parts]
    if not set(names) <= {"l1", "l2"} or len(set(names)) < len(names):
        raise ValueError(text)
    factors = {name: _number(0.0)(number) for name, _, number in parts}
    return Penalty(l2=factors.get("l2", 0.0), l1=factors.get("l1", 0.0))


def _sampling(text: str) -> Sampling:
    name, colon, number = text.lower().partition(":")
    if name == "fixed" and not colon:
        return Sampling()
    if name == "poisson" and colon:
        return Sampling(True, _number(0.0, above=True)(number))
    raise ValueError(text)


def _defences(text: str) -> tuple[Defence, ...]:
    return tuple(one for one in parse_defences(text) if one.name != "none")


_FLAG = (_flag, "true or false")

# How each fact's value is read from a user's words, and what may be given for it.
_PARSERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "image_count": (_whole(LARGEST_IMAGE_COUNT), f"a whole number from 1 to {LARGEST_IMAGE_COUNT}"),
    "batch_norm": (BatchNormMode, f"one of {', '.join(BatchNormMode)}"),
    "dropout": _FLAG,
    "loss": (_name, "the name of a loss, such as cross_entropy"),
    "reduction": (Reduction, f"one of {', '.join(Reduction)}"),
    "loss_scale": (_or("unknown", _number(0.0, above=True)), "a finite number above 0, or unknown"),
    "label_smoothing": (_number(0.0, 1.0), "a number of at least 0 and below 1"),
    "penalty": (_penalty, "factors of at least 0 such as l2:5e-4, l1:1e-5 or l2:5e-4+l1:1e-5, or none"),
    "learning_rate": (_or("unknown", _number(0.0, above=True)), "a finite number above 0, or unknown"),
    "epochs": (_whole(2**31 - 1), "a whole number of at least 1"),
    "batch_size": (_or("all", _whole(2**31 - 1)), "a whole number of at least 1, or all"),
    "momentum": (_number(0.0, 1.0), "a number of at least 0 and below 1"),
    "weight_decay": (_number(0.0), "a finite number of at least 0"),
    "shuffled": _FLAG,
    "defences": (_defences, "defences in order, such as clip:1+noise:0.1, or none"),
    "sampling": (_sampling, "fixed, or poisson:EXPECTED with the expected number of images, such as poisson:8"),
    "clients": (_whole(LARGEST_IMAGE_COUNT), f"a whole number from 1 to {LARGEST_IMAGE_COUNT}"),
}

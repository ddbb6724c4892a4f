"""The record of facts as a reader of the report meets it: each fact in words, with what rests on it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .defences import defence_words
from .facts import BatchNormMode, ClientFacts, Penalty, Provenance, Sampling
from .normalisation import IMAGENET, Normalisation


@dataclass(frozen=True)
class StatedFact:
    """One fact about the client in words."""

    name: str
    """As in `ClientFacts` or `LocalFacts`."""
    title: str
    words: str
    """The value, for a reader."""
    provenance: Provenance
    source: str
    """Who told it, or what it was read off; may be empty."""
    decisive: bool
    """Whether the result of an attack on this update hangs on it."""
    remedy: str
    """How the user gives it, such as ``told.momentum=0.9``."""
    contradiction: str = ""
    """What in the update speaks against it, in a sentence; empty where nothing does."""

    @property
    def doubtful(self) -> bool:
        """Whether no verdict of "no leak shown" can be given: the fact decides, and is not known to be so."""
        return self.decisive and (self.provenance is Provenance.ASSUMED or bool(self.contradiction))


@dataclass(frozen=True)
class _Entry:
    """How one fact is shown."""

    title: str
    words: Callable[[Any], str]
    example: str
    """A value as the user would give it."""


def state_facts(
    facts: ClientFacts, decisive: Collection[str], contradictions: Mapping[str, str]
) -> tuple[StatedFact, ...]:
    """Every fact in words, the most decisive first: contradicted, then assumed, then the others; within each by how
    much hangs on it.

    Args:
        facts: The record.
        decisive: Names of the facts on which the result hangs.
        contradictions: What speaks against a fact, by its name.
    """
    order = {name: place for place, name in enumerate(_ENTRIES)}
    stated = [
        StatedFact(
            name,
            _ENTRIES[name].title,
            _ENTRIES[name].words(fact.value),
            fact.provenance,
            fact.source,
            name in decisive,
            f"told.{name}={_ENTRIES[name].example}",
            contradictions.get(name, ""),
        )
        for name, fact in facts.items()
    ]

    def rank(fact: StatedFact) -> tuple[bool, bool, bool, int]:
        assumed = fact.provenance is Provenance.ASSUMED
        return not fact.contradiction, not fact.decisive, not assumed, order[fact.name]

    return tuple(sorted(stated, key=rank))


def _normalisation(value: Normalisation) -> str:
    if value == IMAGENET:
        return "ImageNet's"
    mean, std = (", ".join(f"{number:g}" for number in part) for part in (value.mean, value.std))
    return f"mean {mean}; deviation {std}"


def _penalty(value: Penalty) -> str:
    parts = [f"{name} {factor:g}" for name, factor in (("L2", value.l2), ("L1", value.l1)) if factor]
    spared = f", without {len(value.spared)} tensors" if value and value.spared else ""
    return (" and ".join(parts) or "none") + spared


def _sampling(value: Sampling) -> str:
    if value.poisson:
        divided = "" if value.expected is None else f", the sum divided by an expected {value.expected:g} images"
        return f"each image by chance (Poisson){divided}"
    divided = "" if value.expected is None else f", the sum divided by {value.expected:g}"
    return f"batches of a given size{divided}"


def _or_unknown(value: float | None) -> str:
    return "not known" if value is None else f"{value:g}"


def _flag(yes: str, no: str) -> Callable[[bool], str]:
    return lambda value: yes if value else no


def _batch(value: int | None) -> str:
    return "all images in one batch" if value is None else f"{value}"


_BATCH_NORM = {
    BatchNormMode.EVAL: "eval: the public running statistics",
    BatchNormMode.TRAIN_SHARED: "train_shared: the batch's own statistics, sent along",
    BatchNormMode.TRAIN_PRIVATE: "train_private: the batch's own statistics, kept to itself",
}

# In the order of how much hangs on them.
_ENTRIES: dict[str, _Entry] = {
    "image_count": _Entry("Images", "{:,}".format, "8"),
    "normalisation": _Entry("Normalisation of the pixels", _normalisation, "0.5,0.5,0.5/0.5,0.5,0.5"),
    "batch_norm": _Entry("Batch norm", _BATCH_NORM.__getitem__, "train_private"),
    "dropout": _Entry("Dropout and stochastic depth", _flag("active", "not active"), "false"),
    "loss": _Entry("Loss", str, "cross_entropy"),
    "reduction": _Entry("Reduction of the loss", str, "mean"),
    "loss_scale": _Entry("Scale of the loss", _or_unknown, "1"),
    "label_smoothing": _Entry("Label smoothing", "{:g}".format, "0"),
    "penalty": _Entry("Penalty on the weights, inside the gradient", _penalty, "none"),
    "learning_rate": _Entry("Learning rate", _or_unknown, "0.01"),
    "epochs": _Entry("Local epochs", "{:,}".format, "1"),
    "batch_size": _Entry("Local batch size", _batch, "8"),
    "momentum": _Entry("Momentum", "{:g}".format, "0.9"),
    "weight_decay": _Entry("Weight decay", "{:g}".format, "0"),
    "shuffled": _Entry("Order of the images", _flag("drawn anew in each epoch", "the same in each epoch"), "false"),
    "defences": _Entry("Defences", defence_words, "none"),
    "sampling": _Entry("Sampling", _sampling, "fixed"),
    "clients": _Entry("Clients in the sum", "{:,}".format, "1"),
}

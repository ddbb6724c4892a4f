"""What the server believes of the client, fact by fact: each with its value and with how the server came by it.

Nothing here is prose: the attack, the report and the audit read these values and no sentence. Whatever a writer does
not say is *assumed* by construction, with the commonest value, and a verdict must not rest on it silently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from .defences import Defence
from .errors import UpdateError
from .local_training import LocalTraining
from .normalisation import Normalisation

V = TypeVar("V")

CROSS_ENTROPY = "cross_entropy"


class Provenance(StrEnum):
    """How the server came by a fact."""

    TOLD = "told"
    """The client, or the user who audits it, said so."""
    READ = "read"
    """It follows from the update itself."""
    ASSUMED = "assumed"
    """Nobody said so: the commonest value stands in its place."""


class BatchNormMode(StrEnum):
    """How the client ran its batch-norm layers, and whether their statistics left the client."""

    EVAL = "eval"
    """The server's running statistics normalise the batch; nothing about the batch is shared beside the gradient."""
    TRAIN_SHARED = "train_shared"
    """The batch's own statistics normalise it, and the running statistics after the step are sent along."""
    TRAIN_PRIVATE = "train_private"
    """The batch's own statistics normalise it and stay with the client."""


class Reduction(StrEnum):
    """How the losses of a batch's images become one number."""

    MEAN = "mean"
    SUM = "sum"


@dataclass(frozen=True)
class Penalty:
    """A term in the client's loss that pulls its weights to zero: the update holds ``l2 w + l1 sign(w)`` beside the
    gradient."""

    l2: float = 0.0
    """lambda of ``lambda / 2 ||w||^2``, as weight decay inside the gradient has it; at least 0."""
    l1: float = 0.0
    """lambda of ``lambda ||w||_1``, at least 0."""
    spared: tuple[str, ...] = ()
    """Parameters that it leaves alone, by name."""

    def __bool__(self) -> bool:
        return self.l2 != 0 or self.l1 != 0

    def term(self, name: str, weight: Tensor) -> Tensor:
        """What it adds to the gradient of the parameter of this name."""
        if name in self.spared:
            return torch.zeros_like(weight)
        if not self.l1:
            return self.l2 * weight
        return self.l2 * weight + self.l1 * weight.sign()


@dataclass(frozen=True)
class Sampling:
    """How the images of one step were chosen."""

    poisson: bool = False
    """Each image by chance, so that the batch's size is chance too; False: batches of a given size."""
    expected: float | None = None
    """By what the sum over the batch was divided, where that is not the number of images that came: the expected size
    of a Poisson batch, or the usual one of a last, smaller batch. None: by the images that came."""


@dataclass(frozen=True)
class Fact(Generic[V]):
    """One fact about the client."""

    value: V
    provenance: Provenance = Provenance.ASSUMED
    source: str = ""
    """Who said so, or what it was read off, in a few words for a reader; nothing relies on it."""

    @property
    def assumed(self) -> bool:
        """Whether nobody said so and nothing shows it."""
        return self.provenance is Provenance.ASSUMED


def told(value: V, source: str = "the client") -> Fact[V]:
    """A fact that somebody stated."""
    return Fact(value, Provenance.TOLD, source)


def read(value: V, source: str) -> Fact[V]:
    """A fact that follows from the update."""
    return Fact(value, Provenance.READ, source)


def assumed(value: V, source: str = "") -> Fact[V]:
    """A fact that is taken for granted."""
    return Fact(value, Provenance.ASSUMED, source)


@dataclass(frozen=True)
class LocalFacts:
    """How the client trained before it sent its weights; see `LocalTraining` for the meaning of each value."""

    learning_rate: Fact[float | None] = Fact(None)
    """None: not known, and to be estimated."""
    epochs: Fact[int] = Fact(1)
    batch_size: Fact[int | None] = Fact(None)
    """None: all images in one batch."""
    momentum: Fact[float] = Fact(0.0)
    weight_decay: Fact[float] = Fact(0.0)
    shuffled: Fact[bool] = Fact(False)

    @classmethod
    def told(cls, training: LocalTraining, source: str = "the client") -> LocalFacts:
        """Every fact of this training, as somebody stated it. A learning rate that is None stays unknown."""
        facts = {name: told(getattr(training, name), source) for name in local_names()}
        if training.learning_rate is None:
            facts["learning_rate"] = assumed(None, "the client keeps it to itself")
        return cls(**facts)

    @property
    def training(self) -> LocalTraining:
        """The values alone.

        Raises:
            UpdateError: They cannot be those of a training.
        """
        return LocalTraining(**{name: getattr(self, name).value for name in local_names()})


def local_names() -> tuple[str, ...]:
    """The names of the facts of local training, which are those of `LocalTraining`."""
    return tuple(one.name for one in fields(LocalFacts))


@dataclass(frozen=True)
class ClientFacts:
    """All that the server believes of one client."""

    image_count: Fact[int]
    """B, the number of images that the gradient was averaged over, or that the client trained on."""
    normalisation: Fact[Normalisation]
    batch_norm: Fact[BatchNormMode]
    loss: Fact[str] = Fact(CROSS_ENTROPY)
    """The name of the loss of one image."""
    reduction: Fact[Reduction] = Fact(Reduction.MEAN)
    loss_scale: Fact[float | None] = Fact(1.0)
    """By what the loss was multiplied beside its reduction (a loss scaler, accumulated batches); None: not known."""
    label_smoothing: Fact[float] = Fact(0.0)
    """Share of each label that is spread evenly over all classes, in [0, 1)."""
    penalty: Fact[Penalty] = Fact(Penalty())
    dropout: Fact[bool] = Fact(False)
    """Whether dropout and stochastic depth were active."""
    defences: Fact[tuple[Defence, ...]] = Fact(())
    """What the client did to its update before it was sent, in order; empty: nothing."""
    sampling: Fact[Sampling] = Fact(Sampling())
    clients: Fact[int] = Fact(1)
    """Clients whose updates were averaged before the server saw them."""
    local: LocalFacts | None = None
    """Of a weight delta; None for a gradient."""
    privacy: str = ""
    """What the client's privacy accountant says, for a reader; nothing relies on it."""

    def __post_init__(self) -> None:
        found = self._problems()
        if found:
            raise UpdateError("; ".join(found))

    def _problems(self) -> list[str]:
        checks = (
            (self.clients.value >= 1, f"the number of clients is {self.clients.value}; it must be at least 1"),
            (
                0 <= self.label_smoothing.value < 1,
                f"the label smoothing is {self.label_smoothing.value:g}; it must be at least 0 and below 1",
            ),
            (
                self.loss_scale.value is None or 0 < self.loss_scale.value < float("inf"),
                f"the scale of the loss is {self.loss_scale.value}; it must be a finite number above 0, or unknown",
            ),
            (
                0 <= self.penalty.value.l1 < float("inf") and 0 <= self.penalty.value.l2 < float("inf"),
                f"the penalty is {self.penalty.value}; its factors must be finite and at least 0",
            ),
            (
                self.sampling.value.expected is None or 0 < self.sampling.value.expected < float("inf"),
                f"the expected batch size is {self.sampling.value.expected}; it must be finite and above 0",
            ),
            (bool(self.loss.value), "the loss has no name; give one, such as cross_entropy"),
        )
        return [sentence for fits, sentence in checks if not fits]

    def stating(self, **facts: Any) -> ClientFacts:
        """The same with other facts in place of these: ``facts.stating(momentum=told(0.9))``, local ones by their name
        too.

        Raises:
            UpdateError: A fact of local training for a client that sent a gradient, or what is no fact at all.
        """
        require_facts(facts)
        local = {name: facts.pop(name) for name in local_names() if name in facts}
        if local and self.local is None:
            raise UpdateError(f"{', '.join(local)} is of local training, and the update is a gradient; leave it out")
        if local and self.local is not None:
            facts["local"] = replace(self.local, **local)
        return replace(self, **facts)

    def items(self) -> Iterator[tuple[str, Fact[Any]]]:
        """Name and fact of each, those of local training after the others."""
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Fact):
                yield one.name, value
        if self.local is not None:
            for name in local_names():
                yield name, getattr(self.local, name)


def require_facts(given: Mapping[str, object]) -> None:
    """Return quietly when these are facts by their names.

    Raises:
        UpdateError: A name that no fact has, or a value without its provenance.
    """
    known = {*(one.name for one in fields(ClientFacts)), *local_names()} - {"local", "privacy"}
    unknown = sorted(given.keys() - known - {"local", "privacy"})
    if unknown:
        raise UpdateError(f"there is no fact {unknown[0]!r}; the facts are {', '.join(sorted(known))}")
    bare = next((name for name, fact in given.items() if name in known and not isinstance(fact, Fact)), None)
    if bare is not None:
        raise UpdateError(f"the fact {bare} is {given[bare]!r}; give it with its provenance, such as told(...)")


def known_facts(
    image_count: int,
    normalisation: Normalisation,
    batch_norm: BatchNormMode,
    loss: str,
    local: LocalTraining | None = None,
    source: str = "the client",
) -> ClientFacts:
    """The record of a client that computed its update here, so that nothing about it is left open: an undefended step
    on one given batch."""
    return ClientFacts(
        image_count=told(image_count, source),
        normalisation=told(normalisation, source),
        batch_norm=told(batch_norm, source),
        loss=told(loss, source),
        reduction=told(Reduction.MEAN, source),
        loss_scale=told(1.0, source),
        label_smoothing=told(0.0, source),
        penalty=told(Penalty(), source),
        dropout=told(False, source),
        defences=told((), source),
        sampling=told(Sampling(), source),
        clients=told(1, source),
        local=None if local is None else LocalFacts.told(local, source),
    )


def all_assumed(facts: ClientFacts, source: str) -> ClientFacts:
    """The same values, none of which anybody vouches for."""
    local = None if facts.local is None else LocalFacts(**_assumed(facts.local, local_names(), source))
    names = tuple(name for name, _ in facts.items() if name not in local_names())
    return replace(facts, **_assumed(facts, names, source), local=local)


def _assumed(owner: object, names: tuple[str, ...], source: str) -> dict[str, Any]:
    return {name: assumed(getattr(owner, name).value, source) for name in names}

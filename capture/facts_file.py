"""The record of facts as JSON, and back: a stranger wrote it, so every value is checked before it is believed.

Version 1 of the format knew values without provenance; its facts are read as assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from ..plugins import PluginKind, is_plugin
from ..storage.safetensors_reader import short
from .defences import Defence, defence_names
from .errors import UpdateError
from .facts import (
    BatchNormMode,
    ClientFacts,
    Fact,
    LocalFacts,
    Penalty,
    Provenance,
    Reduction,
    Sampling,
    all_assumed,
    local_names,
)
from .normalisation import Normalisation

LONGEST_TEXT = 500
_MOST_DEFENCES = 16
_MOST_NORMS = 100_000
_LARGEST_NUMBER = 1e9

Read = Callable[[str, object], Any]
Write = Callable[[Any], object]


def write_facts(facts: ClientFacts) -> dict[str, Any]:
    """The record as plain values."""
    written: dict[str, Any] = {"privacy": facts.privacy, "local": facts.local is not None}
    for name, fact in facts.items():
        value = _CODEC[name][0](fact.value)
        written[name] = {"value": value, "provenance": str(fact.provenance), "source": fact.source[:LONGEST_TEXT]}
    return written


def read_facts(written: object) -> ClientFacts:
    """The record that ``write_facts`` gave.

    Raises:
        UpdateError: What is wrong with it, in one sentence.
    """
    if not isinstance(written, Mapping):
        refuse(f"its facts are {short(written)}; they must be an object")
    local = written.get("local")
    if type(local) is not bool:
        refuse(f"its fact local is {short(local)}; it must be true or false")
    unknown = sorted(written.keys() - _CODEC.keys() - {"privacy", "local"})
    if unknown:
        refuse(f"its facts name {short(unknown[0])}, which this version does not know; update gradinversion")
    found = {name: _fact(name, written[name]) for name in _CODEC if name in written}
    missing = {"image_count", "normalisation", "batch_norm"} - found.keys()
    if missing:
        refuse(f"its facts lack {', '.join(sorted(missing))}; capture the update again")
    steps = {name: found.pop(name) for name in local_names() if name in found}
    if steps and not local:
        refuse(f"its facts name {', '.join(steps)} although the client did not train")
    privacy = text("privacy", written.get("privacy", ""))
    return ClientFacts(**found, local=LocalFacts(**steps) if local else None, privacy=privacy)


def read_old_facts(values: Mapping[str, Any]) -> ClientFacts:
    """The facts of a file of version 1: all assumed, and its words on defences only repeated.

    Raises:
        UpdateError: What is wrong with them, in one sentence.
    """
    source = "a file of an older version"
    local = _old_local(values.get("local"))
    said = text("defence", values.get("defence"))
    facts = ClientFacts(
        image_count=Fact(_whole("image_count", values.get("image_count"))),
        normalisation=Fact(_normalisation("normalisation", {key: values.get(key) for key in ("mean", "std")})),
        batch_norm=Fact(_batch_norm("batch_norm", values.get("batch_norm"))),
        loss=Fact(text("loss", values.get("loss"))),
        local=local,
    )
    facts = all_assumed(facts, source)
    if said not in ("", "none"):
        facts = facts.stating(defences=Fact((), source=f"{source}, which says: {said}"[:LONGEST_TEXT]))
    return facts


def _old_local(value: object) -> LocalFacts | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or value.keys() != set(local_names()):
        refuse(f"its entry local is {short(value)}; it must have the entries {', '.join(sorted(local_names()))}")
    return LocalFacts(**{name: Fact(_CODEC[name][1](name, value[name])) for name in local_names()})


def _fact(name: str, written: object) -> Fact[Any]:
    if not isinstance(written, Mapping) or written.keys() != {"value", "provenance", "source"}:
        refuse(f"its fact {name} is {short(written)}; it must have the entries value, provenance and source")
    provenance = written["provenance"]
    if not isinstance(provenance, str) or provenance not in list(Provenance):
        refuse(f"the provenance of its fact {name} is {short(provenance)}; it must be one of {', '.join(Provenance)}")
    return Fact(_CODEC[name][1](name, written["value"]), Provenance(provenance), text("source", written["source"]))


def refuse(reason: str) -> NoReturn:
    """Raise UpdateError for this reason."""
    raise UpdateError(reason)


def text(name: str, value: object) -> str:
    """A text of bounded length."""
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        refuse(f"its {name} is {short(value)}; it must be a text of at most {LONGEST_TEXT} characters")
    return value


def _whole(name: str, value: object) -> int:
    if type(value) is not int or not abs(value) < 2**31:
        refuse(f"its {name} is {short(value)}; it must be a whole number")
    return value


def _maybe(read: Read) -> Read:
    return lambda name, value: None if value is None else read(name, value)


def _number(name: str, value: object) -> float:
    # Comparing first keeps integers too large for a float away from float().
    if not (type(value) in (int, float) and abs(value) < _LARGEST_NUMBER):  # type: ignore[arg-type]
        refuse(f"its {name} is {short(value)}; it must be a finite number")
    assert isinstance(value, int | float)
    return float(value)


def _flag(name: str, value: object) -> bool:
    if type(value) is not bool:
        refuse(f"its {name} is {short(value)}; it must be true or false")
    return value


def _numbers(name: str, value: object, most: int = _MOST_NORMS) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) > most:
        refuse(f"its {name} is {short(value)}; it must be a list of finite numbers")
    return tuple(_number(name, item) for item in value)


def _object(name: str, value: object, keys: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or value.keys() != keys:
        refuse(f"its {name} is {short(value)}; it must have the entries {', '.join(sorted(keys))}")
    return value


def _choice(name: str, value: object, allowed: list[Any]) -> str:
    if not isinstance(value, str) or value not in allowed:
        refuse(f"its {name} is {short(value)}; it must be one of {', '.join(allowed)}")
    return value


def _normalisation(name: str, value: object) -> Normalisation:
    parts = _object(name, value, {"mean", "std"})
    return Normalisation(_numbers("mean", parts["mean"]), _numbers("std", parts["std"]))


def _batch_norm(name: str, value: object) -> BatchNormMode:
    return BatchNormMode(_choice(name, value, list(BatchNormMode)))


def _reduction(name: str, value: object) -> Reduction:
    return Reduction(_choice(name, value, list(Reduction)))


def _penalty(name: str, value: object) -> Penalty:
    parts = _object(name, value, {"l1", "l2", "spared"})
    spared = parts["spared"]
    if not isinstance(spared, list) or len(spared) > _MOST_NORMS:
        refuse(f"the parameters that its {name} spares are {short(spared)}; they must be a list of names")
    names = tuple(text("spared parameter", one) for one in spared)
    return Penalty(_number("penalty l2", parts["l2"]), _number("penalty l1", parts["l1"]), names)


def _sampling(name: str, value: object) -> Sampling:
    parts = _object(name, value, {"poisson", "expected"})
    return Sampling(_flag("poisson", parts["poisson"]), _maybe(_number)("expected batch size", parts["expected"]))


def _defences(name: str, value: object) -> tuple[Defence, ...]:
    if not isinstance(value, list) or len(value) > _MOST_DEFENCES:
        refuse(f"its {name} are {short(value)}; they must be a list of at most {_MOST_DEFENCES}")
    found = []
    for item in value:
        parts = _object("defence", item, {"name", "strength", "clip"})
        kind = parts["name"]
        # A plug-in's is only named here: code runs where the command names it.
        if not isinstance(kind, str) or not is_plugin(PluginKind.DEFENCE, kind):
            kind = _choice("defence", kind, list(defence_names()))
        found.append(Defence(kind, _number("strength", parts["strength"]), _numbers("clip", parts["clip"])))
    return tuple(found)


def _same(value: Any) -> object:
    return value


def _parts(*names: str) -> Write:
    return lambda value: {name: _listed(getattr(value, name)) for name in names}


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _finite(value: float | None) -> object:
    return value if value is None or math.isfinite(value) else None


# How each fact's value is written and read.
_CODEC: dict[str, tuple[Write, Read]] = {
    "image_count": (_same, _whole),
    "normalisation": (_parts("mean", "std"), _normalisation),
    "batch_norm": (str, _batch_norm),
    "loss": (_same, text),
    "reduction": (str, _reduction),
    "loss_scale": (_finite, _maybe(_number)),
    "label_smoothing": (_same, _number),
    "penalty": (_parts("l1", "l2", "spared"), _penalty),
    "dropout": (_same, _flag),
    "defences": (lambda value: [_parts("name", "strength", "clip")(one) for one in value], _defences),
    "sampling": (_parts("poisson", "expected"), _sampling),
    "clients": (_same, _whole),
    "learning_rate": (_same, _maybe(_number)),
    "epochs": (_same, _whole),
    "batch_size": (_same, _maybe(_whole)),
    "momentum": (_same, _number),
    "weight_decay": (_same, _number),
    "shuffled": (_same, _flag),
}

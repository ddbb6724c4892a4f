"""What an audit took for granted, and the versions that produced it: without these a number means little."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .. import __version__
from ..capture.client.images import PHOTOS
from ..coordinator import Reconstruction, flatten
from ..peeling.config import LINEAR
from ..peeling.record import DecoderPhotos, ImagesBy
from .initialisation import WeightState

GIVEN_LABELS = "given"
"""The method of labels that somebody stated: they were not read off the update (`target.labels`)."""
_MOST_NAMED = 8
_LABELS = {
    GIVEN_LABELS: "given to the attack, not read off the update",
    "joint": "optimised together with the images",
}


def state_assumptions(reconstruction: Reconstruction, weights: WeightState) -> tuple[str, ...]:
    """One sentence per assumption, in the order in which a reader doubts them.

    Args:
        reconstruction: the result of the attack, with the facts of the update that it attacked.
        weights: what is known of the attacked model's weights.
    """
    _, channels, height, width = reconstruction.images.shape
    labels = reconstruction.labels
    return (
        f"Model: {reconstruction.model_id}{weights}.",
        f"Batch: {counted(len(reconstruction.images), 'image')} of {channels} x {height} x {width} pixels; what is "
        "known of the client stands above, fact by fact.",
        *([f"Local training: {reconstruction.training}"] if reconstruction.training else []),
        f"Labels: {_LABELS.get(labels.method, f'inferred from the update by the rule “{labels.method}”')}. "
        f"{as_sentence(labels.assumption)}",
        f"Priors and weights of the objective: {_weights(reconstruction.config)}{_range(reconstruction.config)}.",
        *_start(reconstruction),
        f"Effort: {_effort(reconstruction)}.",
        "Threat: an honest-but-curious server that knows the model and sees this one update; it changes nothing.",
    )


def state_provenance() -> dict[str, str]:
    """Versions of the package, of what it runs on, and the date in UTC."""
    return {
        "gradinversion": __version__,
        "torch": _installed("torch"),
        "torchvision": _installed("torchvision"),
        "ray": _installed("ray"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def as_sentence(text: str) -> str:
    """``text`` with a capital at its start, and with a full stop where it ends without a mark."""
    text = text.strip()
    if not text:
        return text
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def counted(number: int, noun: str) -> str:
    """``"1 round"``, ``"2 rounds"``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _weights(config: Mapping[str, Any]) -> str:
    used = [
        f"{name.rpartition('.')[2].removesuffix('_weight').replace('_', ' ')} {value:g}"
        for name, value in flatten(config)
        if name.endswith("_weight") and isinstance(value, int | float) and value
    ]
    return ", ".join(used) or "not recorded"


def _range(config: Mapping[str, Any]) -> str:
    """That the images are those of a generator, which shows plausible images whatever the update says."""
    generator = dict(flatten(config)).get("agents.generator")
    return (
        f"; images within the range of the generator {generator}, plausible whatever was captured" if generator else ""
    )


def _start(reconstruction: Reconstruction) -> list[str]:
    """What pictures of a descent on features were begun with."""
    record = reconstruction.peeling
    descended = record is not None and record.found is not None and record.found.by is ImagesBy.DESCENT
    if record is None or not (descended or record.decoded):
        return []
    named = dict(flatten(reconstruction.config)).get("peeling.decoder", LINEAR)
    decoder = "a linear decoder, which a small network mends where features are fewer than pixels,"
    if named != LINEAR:
        decoder = f"the decoder {named}, code of the user's own,"
    return [f"Start of the descent on features: what {decoder} makes of them{_fitted(record.photos)}."]


def _fitted(photos: DecoderPhotos | None) -> str:
    """On which photos, and which were left out."""
    if photos is None:
        return ""
    source = "scikit-image" if photos.source == PHOTOS else photos.source
    names = _listed(photos.names)
    out = f"; left out, as the client's own or as told: {_listed(photos.left_out)}" if photos.left_out else ""
    own = "Of a photo among them that is the client's too, in another crop say, it shows what it was told"
    return f", fitted on photos of {source} ({names}){out}. {own}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _effort(reconstruction: Reconstruction) -> str:
    seeds = len({candidate.seed for candidate in reconstruction.candidates})
    restarts = f", {counted(reconstruction.restarts, 'restart')}" if reconstruction.restarts else ""
    steps = f"{counted(seeds, 'seed')} x {counted(reconstruction.iterations, 'step')}"
    return f"{steps} in {counted(reconstruction.rounds, 'round')}{restarts}"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

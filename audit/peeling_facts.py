"""What peeling recovered, as the `peeling` section of ``report.json``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..coordinator import Reconstruction
from ..peeling.record import PeelingRecord
from ..peeling.resolutions import Resolution, resolutions
from ..peeling.wording import summary


def peeling_facts(record: PeelingRecord, size: tuple[int, int]) -> dict[str, Any]:
    """Every field of the record, with what follows from them and the sentences that say it.

    Args:
        record: Of peeling.
        size: Height and width of the images in pixels.
    """
    places = [
        asdict(place) | {"numbers": place.numbers, "error_max": place.error_max, "error_median": place.error_median}
        for place in record.places
    ]
    nearest = record.nearest
    return {
        **asdict(record),
        "places": places,
        "nearest": None if nearest is None else nearest.value,
        "whole": record.whole,
        "resolutions": [_resolution(one) for one in resolutions(record, size)],
        "summary": summary(record),
    }


def _resolution(found: Resolution) -> dict[str, Any]:
    return {
        "grid": found.grid,
        "pixels": found.pixels,
        "values": found.values,
        "channels": found.channels,
        "value": found.best.value,
        "place": found.best.place,
        "error": found.error,
    }


def peeling_summary(reconstruction: Reconstruction) -> str:
    """The record in one or two sentences; empty where nothing was peeled."""
    return "" if reconstruction.peeling is None else summary(reconstruction.peeling)

"""What peeling recovered, as the `peeling` section of ``report.json``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..peeling.record import PeelingRecord
from ..peeling.wording import ended, reached


def peeling_facts(record: PeelingRecord) -> dict[str, Any]:
    """Every field of the record, with what follows from them and the sentences that say it."""
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
        "summary": " ".join(filter(None, (reached(record), ended(record)))),
    }

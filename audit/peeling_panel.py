"""The panel on what the gradient determines: the table of places, where it ended, and the diagram."""

from __future__ import annotations

from dataclasses import dataclass

from ..peeling.record import PeelingRecord, RecoveredPlace
from ..peeling.resolutions import resolutions
from ..peeling.wording import standing, summary, would_do
from .network_diagram import Diagram, draw_network

_MOST_ENDS = 4
SHOWN_PLACES = 16
"""Places shown at once; further ones are folded away."""
# How a rule is called in the table.
_RULES = {
    "convolution input, gradient": "weight gradient",
    "convolution input, jointly": "gradient and outputs",
    "convolution input": "weight gradient",
    "convolution input in groups": "weight gradient",
    "linear input": "weight gradient",
    "open units": "forwards",
    "output derivative": "weight gradient",
    "segment input": "the block's gradients and output",
    "inverted block": "the block's gradients and output",
}


@dataclass(frozen=True)
class PeelingPanel:
    """What the template is given."""

    summary: str
    standing: tuple[tuple[str, str], ...]
    places: tuple[dict[str, str], ...]
    """From the images on."""
    ends: tuple[dict[str, str], ...]
    diagram: Diagram | None
    resolutions: tuple[dict[str, str], ...] = ()
    """Grids on which features are known at every place, the finest first."""


def peeling_panel(record: PeelingRecord | None, size: tuple[int, int]) -> PeelingPanel | None:
    """The panel; None where nothing was peeled.

    Args:
        record: Of peeling.
        size: Height and width of the images in pixels.
    """
    if record is None:
        return None
    order = {node.name: position for position, node in enumerate(record.nodes)}
    places = sorted(record.places, key=lambda place: order.get(place.value, -1))
    return PeelingPanel(
        summary=summary(record),
        standing=standing(record),
        places=tuple(map(_place, places)),
        ends=tuple(
            {
                "place": _capital(end.place),
                "words": end.words,
                "would": _capital(would_do(end, visits=record.local_steps > 0)),
            }
            for end in record.ends[:_MOST_ENDS]
        ),
        diagram=draw_network(record),
        resolutions=tuple(
            {
                "stride": one.stride,
                "grid": f"{one.grid[0]} × {one.grid[1]}",
                "values": f"{one.values:,}",
                "channels": f"{one.channels:,}",
                "place": one.best.place.removeprefix("the "),
                "error": f"{one.error:.1g}",
            }
            for one in resolutions(record, size)
        ),
    )


def _place(place: RecoveredPlace) -> dict[str, str]:
    return {
        "place": place.place.removeprefix("the "),
        "shape": " × ".join(map(str, place.shape)),
        "rule": _RULES.get(place.rule, place.rule),
        "error": f"{place.error_max:.1g}",
        "median": f"{place.error_median:.1g}",
        "unknowns": "–" if place.unknowns is None else f"{place.unknowns:,}",
        "equations": "–" if place.equations is None else f"{place.equations:,}",
        "seconds": f"{place.seconds:.1f}" if place.seconds >= 0.05 else "–",
        "checks": "; ".join(f"{name} {value:.1g}" for name, value in place.checks.items()),
    }


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]

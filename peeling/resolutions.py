"""At which resolution features are known: how large the grid is at every place of which they are, whatever became of a
picture."""

from __future__ import annotations

from dataclasses import dataclass

from .record import PeelingRecord, RecoveredPlace

# The finest ones are named in the sentence.
_NAMED = 3


@dataclass(frozen=True)
class Resolution:
    """One grid, at every place of which features of every image are known."""

    grid: tuple[int, int]
    """Places from top to bottom, and from left to right."""
    pixels: tuple[float, float]
    """Of the image, for each place of the grid, in both directions."""
    values: int
    """Values of the network that are known on this grid."""
    best: RecoveredPlace
    """Of these, the one that is known best."""

    @property
    def channels(self) -> int:
        """Numbers at each place of the value that is known best."""
        return self.best.shape[0]

    @property
    def error(self) -> float:
        """Estimated, relative, of the image that is known least at the value that is known best."""
        return self.best.error_max

    @property
    def stride(self) -> str:
        """Pixels from one place to the next, for a reader."""
        sides = [f"{side:g}" if side == round(side) else f"{side:.1f}" for side in self.pixels]
        return sides[0] if sides[0] == sides[1] else " x ".join(sides)


def resolutions(record: PeelingRecord, size: tuple[int, int]) -> tuple[Resolution, ...]:
    """The grids, the finest first; empty where features of no grid are known.

    Args:
        record: What was recovered. Its places are known at every entry, for every image.
        size: Height and width of the images in pixels.
    """
    by_grid: dict[tuple[int, int], list[RecoveredPlace]] = {}
    for place in record.places:
        if len(place.shape) == 3:
            by_grid.setdefault((place.shape[1], place.shape[2]), []).append(place)
    found = [
        Resolution(
            grid,
            (size[0] / grid[0], size[1] / grid[1]),
            len(places),
            min(places, key=lambda one: one.error_max),
        )
        for grid, places in by_grid.items()
    ]
    return tuple(sorted(found, key=lambda one: -one.grid[0] * one.grid[1]))


def resolution_sentence(record: PeelingRecord, size: tuple[int, int]) -> str:
    """What is known at which resolution, in one sentence; empty where nothing is, or the images are known themselves.

    Args:
        record: What was recovered.
        size: Height and width of the images in pixels.
    """
    found = resolutions(record, size)[:_NAMED]
    if record.whole or not found:
        return ""
    parts = [
        f"stride {one.stride} ({one.grid[0]} x {one.grid[1]} places, {one.channels:,} numbers at each, estimated error "
        f"{one.error:.1g})"
        for one in found
    ]
    which = "every visit" if record.local_steps else "every image"
    return f"Features of every place of {which} are known at {' and at '.join(parts)}."

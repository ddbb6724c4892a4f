"""What of one image was recovered to the last of 8 bits: plain numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BitMatch:
    """What of one image was recovered to the last of 8 bits."""

    exact_share: float | None
    """Of its values, how many are those of the private image after rounding to 8 bits; None without ground truth."""
    original_on_grid: bool | None
    """Whether the private image is on the 256 levels of an 8-bit file; None without ground truth."""
    seen: bool
    """Whether the recovered values alone show that all of them round to the right level (`grid_evidence`)."""
    seen_share: float
    """Of how many of them they show it."""
    cost: float
    """Root mean square distance from the levels of an 8-bit file, over that of chance."""
    other_cost: float
    """The median of the same at other scales, which mean nothing."""

    @property
    def exact(self) -> bool:
        """Whether the private image came back bit for bit."""
        return bool(self.original_on_grid) and self.exact_share == 1

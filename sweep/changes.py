"""A change of the client's settings: what it does to the leak, and at which price."""

from __future__ import annotations

from dataclasses import dataclass

from .outcomes import Effect
from .price import Price


@dataclass(frozen=True)
class Change:
    """Another combination of the client's settings, judged by the worst over all that is no setting."""

    levels: tuple[int, ...]
    """By axis; on an axis of what is no setting the base."""
    name: str
    """What is altered, in words."""
    effect: Effect
    leaked: int
    """Images that leak or are weakly visible, in the worst cell."""
    images: int
    """Of one cell."""
    labels: float | None
    """Share of the labels that were recovered in the worst cell; None where that is not known."""
    defence: str
    """The defence that these settings have, by the name of its level."""
    alters_defence: bool
    exactness: Effect
    """The same as `effect`, of the places of the network that the update determines exactly."""
    exact_places: int | None
    """So many, in the worst cell; None where none is known and not all cells say so."""
    price: Price | None
    """Of that defence; None where it was not measured."""

    @property
    def cost(self) -> float | None:
        """Accuracy that its defence costs, in [-1, 1]; None where that is not known."""
        return None if self.price is None else self.price.cost

    @property
    def usable(self) -> bool:
        """False where a model is known not to be trainable with its defence."""
        return self.price is None or self.price.usable

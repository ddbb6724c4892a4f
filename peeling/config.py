"""Settings of layer peeling."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PeelingConfig:
    """Which layers are solved in closed form before the agents start."""

    enabled: bool = True
    """Solve for the activations of the last layers where the gradient determines them; the agents invert the rest."""
    taps: bool = True
    """Where that ends at once, take the weight gradient of a convolution apart by its taps: on residual networks it
    gives every image's features away."""
    tolerance: float = 3e-2
    """Largest estimated relative error at which activations count as recovered; a strong defence exceeds it."""

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"peeling.tolerance={self.tolerance}: give a number between 0 and 1.")

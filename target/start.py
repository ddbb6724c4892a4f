"""Where seeds begin, when more is known of the images than that they are images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Start:
    """Images that every seed begins at or near, in the order of the labels."""

    images: Float[Tensor, "batch channel height width"]
    """As the model is given them."""
    error: Float[Tensor, " batch"]
    """Estimated root mean square error of each, in the same units; 0 where they are known, up to rounding and to what
    is said of them elsewhere: where some of the batch could not be found (`Repeats.unseen`), something stands for these
    that no seed leaves either, and a limit says so."""
    seed: int = 0
    """That begins at the images themselves. The others begin with noise of their own, as large as the error."""
    fitted: bool = False
    """Whether the images fit more than the features that seeds descend on. What seeds make of them may then be worse,
    so that they stand for the answer beside the seeds' own."""

    @property
    def is_known(self) -> bool:
        """Whether the images are known, so that no seed begins elsewhere."""
        return not bool(self.error.any())

    def spread(self, seed: int, incarnation: int) -> Float[Tensor, "batch 1 1 1"]:
        """Deviation of the noise that a seed adds to the images.

        Args:
            seed: Of the agent.
            incarnation: How often it was restarted: where it has failed, it does not begin again.
        """
        own = seed != self.seed or incarnation > 0
        return (self.error if own else torch.zeros_like(self.error))[:, None, None, None]

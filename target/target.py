"""What every seed of an attack is given: the update as it is attacked, and all that is known of its batch."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor, nn

from ..capture import CapturedUpdate
from ..peeling import Anchor
from .assumed_epoch import step_groups


@dataclass(frozen=True)
class Target:
    """All that is known about the batch: the same for every seed."""

    update: CapturedUpdate
    model: nn.Module
    labels: Int[Tensor, " batch"]
    anchor: Anchor | None = None
    scale_known: bool = True
    """False: the client's learning rate is estimated, so that the gradient is matched up to one common factor."""
    generator: nn.Module | None = None
    """Within whose range the images are looked for; see `load_generator`."""
    joint_labels: bool = False
    """Whether labels are not known but optimised with the images; ``labels`` then only tells how many there are."""

    @property
    def interchangeable(self) -> Int[Tensor, " batch"]:
        """One number per image; images with the same number may change places without changing what is matched."""
        return self.labels if self.update.local is None else step_groups(self.labels, self.update)

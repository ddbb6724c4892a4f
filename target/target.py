"""What every seed of an attack is given: the update as it is attacked, and all that is known of its batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from jaxtyping import Int
from torch import Tensor, nn

from ..capture import CapturedUpdate, OneLook, as_gradient
from ..capture.fitting import fit
from ..peeling import Anchor
from ..peeling.cut import Cut
from .adaptation import Adaptation
from .allowance import find_allowance
from .assumed_epoch import step_groups
from .known_statistics import KnownStatistics, known_statistics
from .start import Start


@dataclass(frozen=True)
class Target:
    """All that is known about the batch: the same for every seed.

    What follows from these fields is found when it is first asked for and kept, and travels with the target: whoever
    prepares an attack asks before the first seed gets it.
    """

    update: CapturedUpdate
    """As it is attacked; it must belong to the model (``CapturedUpdate.require_match``), and so must its buffers
    (``CapturedUpdate.buffer_mismatches``): nobody checks the former again."""
    model: nn.Module
    labels: Int[Tensor, " batch"]
    anchor: Anchor | None = None
    scale_known: bool = True
    """False: the client's learning rate is estimated, so that the gradient is matched up to one common factor."""
    generator: nn.Module | None = None
    """Within whose range the images are looked for; see `load_generator`."""
    joint_labels: bool = False
    """Whether labels are not known but optimised with the images; ``labels`` then only tells how many there are."""
    cut: Cut | None = None
    """Features of every image, nearer to the images than the anchor, in the order of the labels."""
    start: Start | None = None
    """Images that seeds begin at or near; None: they begin at noise."""
    look: OneLook = field(default_factory=OneLook, repr=False, compare=False)
    """At the final layer, as far as the preparation has looked."""

    def __post_init__(self) -> None:
        update, model = fit(self.update, self.model)
        if update.local is None:
            update = as_gradient(update, model)
        object.__setattr__(self, "update", update)
        object.__setattr__(self, "model", model)

    def finished(self, adaptive: bool, statistics: bool) -> Target:
        """This target with everything found that an objective asks for.

        Args:
            adaptive: Whether the objective allows for defences.
            statistics: Whether it has the prior on batch norm's statistics.
        """
        _ = self.adaptive_allowance if adaptive else self.allowance
        if statistics:
            _ = self.statistics
        return self

    @cached_property
    def allowance(self) -> Adaptation:
        """What the match allows for without regard to defences: the penalty, an unknown scale."""
        return find_allowance(self.update, self.model, self.labels, self.anchor, adaptive=False)

    @cached_property
    def adaptive_allowance(self) -> Adaptation:
        """What the match allows for, defences included."""
        labels = None if self.joint_labels else self.labels
        return find_allowance(self.update, self.model, labels, self.anchor, adaptive=True, look=self.look)

    @cached_property
    def statistics(self) -> KnownStatistics:
        """Of the batch, for the prior on batch norm."""
        return known_statistics(self.update, self.model)

    @property
    def interchangeable(self) -> Int[Tensor, " batch"]:
        """One number per image; images with the same number may change places without changing what is matched."""
        return self.labels if self.update.local is None else step_groups(self.labels, self.update)

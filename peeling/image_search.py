"""What images are looked for with once features are known: an update, public photos, and the effort that is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..capture import CapturedUpdate
from .config import PeelingConfig
from .cut import Cut, Recovered, images_from_cut
from .graph.cost import operations
from .layers import sizes
from .progress import Tell, descent_told, unheard

MET = 1e-3
"""What a descent may leave of the features' length, where they are known better than that."""
FEWEST_EVALUATIONS = 60
"""Of the features and their derivative: fewer are no descent."""
# More evaluations of the features and their derivative were never of use.
_MOST_EVALUATIONS = 1000
# A descent that got stuck begins again where it ended, blurred so often, while so many evaluations of each image are
# left.
_BLURRED = (1, 4)
# Of images that descend as one those are stuck which leave more than this share of what the worst does.
_STUCK = 0.5


@dataclass(frozen=True)
class Descended:
    """Images at the end of a descent on their features."""

    images: Float[Tensor, "image channel height width"]
    """As the model is given them."""
    misfit: Float[Tensor, " image"]
    """See `gradinversion.peeling.cut.Recovered`."""
    off: Float[Tensor, " image"]
    """Estimated root mean square error of each image, in units of its values; only of use where it met its features."""
    met: Bool[Tensor, " image"]
    """Whether the image has its features."""
    evaluations: int
    """Of single images' features and their derivative, all together."""
    begun_again: int = 0
    """Images at which a descent that got stuck began again, blurred, whether or not that left less of their features.
    Where it did, what they leave open is no longer the start's."""

    @property
    def error(self) -> Float[Tensor, " image"]:
        """As a share of each image's own root mean square; infinite where it has not met its features."""
        return torch.where(self.met, self.off / sizes(self.images).clamp_min(1e-300), torch.inf)


@dataclass(frozen=True)
class ImageSearch:
    """The same for every cut of one update."""

    update: CapturedUpdate
    config: PeelingConfig
    pictures: Sequence[Float[Tensor, "channel _ _"]] | None = None
    """Public photos in [0, 1]; None takes those that are configured."""
    device: torch.device | None = None
    """On which the model is run; None: the CPU."""
    tell: Tell = unheard
    """Told what it is at."""

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Of the values that the model is given, by channel."""
        return self.update.normalisation.bounds(dtype=torch.float64)

    def evaluations(self, cut: Cut, image_count: int) -> int:
        """How often so many images' features and their derivative, which costs twice as much, may be evaluated."""
        one = 3 * image_count * operations(cut.graph, [place.before for place in cut.places])
        return min(int(self.config.operations / one), _MOST_EVALUATIONS)

    def descend(self, cut: Cut, start: Tensor, evaluations: int, least: float = MET) -> Descended:
        """Images that have the features of a cut.

        Args:
            cut: With the features.
            start: Images that are near enough.
            evaluations: Of each image, at most.
            least: What the descent may leave of the features' length, where they are known better than that.
        """
        told = descent_told(self.tell, evaluations * len(start))
        found = images_from_cut(cut, start, *self.bounds, evaluations, told, self.device)
        known = torch.stack([place.error for place in cut.places]).amax(dim=0)
        # The network in front may be known better than `least` allows for: what leaves more than others do is stuck.
        enough, clean = known.clamp_min(least), known.clamp_min(MET)
        left, begun_again = evaluations * len(start) - int(found.evaluations.sum()), 0
        for times in _BLURRED:
            stuck = (found.misfit > clean).nonzero()[:, 0]
            if cut.is_coupled and len(stuck):
                # Images that are stuck spoil the others' features by the statistics.
                stuck = (found.misfit > _STUCK * found.misfit.max()).nonzero()[:, 0]
            chosen = torch.arange(len(start)) if cut.is_coupled else stuck
            if not len(stuck) or left < FEWEST_EVALUATIONS * len(chosen):
                break
            self.tell(f"a descent that got stuck begins again at {len(stuck)} of {len(start)} images, blurred")
            begun_again = max(begun_again, len(stuck))  # those of a second time are mostly among those of the first
            begun, most = found.images.clone(), min(left // len(chosen), _MOST_EVALUATIONS)
            begun[stuck] = _blurred(begun[stuck], times)
            told = descent_told(self.tell, most * len(chosen))
            some = cut if cut.is_coupled else cut.in_order(chosen)
            again = images_from_cut(some, begun[chosen], *self.bounds, most, told, self.device)
            left -= int(again.evaluations.sum())
            found = _nearer_batch(found, again) if cut.is_coupled else _nearer(found, again, stuck)
        met, made = found.misfit <= enough, evaluations * len(start) - left
        return Descended(found.images, found.misfit, found.error, met, made, begun_again)


def _blurred(images: Tensor, times: int) -> Tensor:
    """Each pixel with its neighbours: what a descent that got stuck made of details is let go of."""
    kernel = torch.tensor([1.0, 2.0, 1.0], dtype=images.dtype, device=images.device) / 4
    channels = images.shape[1]
    both = (kernel[:, None] * kernel).expand(channels, 1, 3, 3)
    for _ in range(times):
        images = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), both, groups=channels)
    return images


def _nearer_batch(found: Recovered, again: Recovered) -> Recovered:
    """What leaves less of all features: images that share their statistics are no others one by one."""
    better = again if float(again.misfit.norm()) < float(found.misfit.norm()) else found
    return replace(better, evaluations=found.evaluations + again.evaluations)


def _nearer(found: Recovered, again: Recovered, stuck: Int[Tensor, " stuck"]) -> Recovered:
    """Of each of these images what leaves less of its features."""
    better = again.misfit < found.misfit[stuck]
    which = stuck[better]
    images, misfit, error = found.images.clone(), found.misfit.clone(), found.error.clone()
    evaluations = found.evaluations.clone()
    images[which], misfit[which], error[which] = again.images[better], again.misfit[better], again.error[better]
    evaluations[stuck] += again.evaluations
    return Recovered(images, misfit, error, evaluations)

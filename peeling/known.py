"""What of the private images is known exactly, whether or not an attack makes pictures of it."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from .anchor import Anchor
from .record import PeelingRecord
from .rules import Derivation
from .tap_cut import TapCut

# Places known less well are taken only where no other is.
_SURELY = 3e-5


@dataclass(frozen=True)
class KnownFeatures:
    """Activations of every image at one place of the network, determined by the gradient."""

    module: str
    """Name of the module at which they are known; empty for the model itself."""
    output: bool
    """Whether they are the module's output; else its input."""
    rectified: bool
    """Whether they are known behind a ReLU only: zero stands for any value that is not positive."""
    activations: Float[Tensor, "image ..."]
    error: float
    """Estimated, relative."""
    way: str
    """How they were found, in a few words for a reader."""

    @property
    def words(self) -> str:
        """Where they are and how many, for a reader."""
        shape = " x ".join(str(side) for side in self.activations.shape[1:])
        where = self.module or "the model"
        return f"the {'output' if self.output else 'input'} of {where} ({shape} numbers for each image)"


def known_by_peeling(anchor: Anchor, way: str = "layer peeling") -> KnownFeatures:
    """What peeling came to, and in which way, in a few words."""
    activations = anchor.activations.detach().cpu().float()
    return KnownFeatures(anchor.module, False, anchor.one_sided, activations, anchor.error, way)


def known_by_taps(cut: TapCut) -> KnownFeatures:
    """What the taps of a convolution gave."""
    way = f"the taps of {cut.convolution}"
    return KnownFeatures(cut.batch_norm, True, True, cut.activations, cut.error, way)


def known_by_rules(record: PeelingRecord, derivation: Derivation, model: nn.Module) -> KnownFeatures | None:
    """Of the places that follow from taps, the one nearest to the images that is surely known, at a module's input.

    Args:
        record: Of the derivation.
        derivation: With the activations.
        model: Whose modules are meant; None is handed back where no place is the input of one of them.
    """
    names = {name for name, _ in model.named_modules() if name}
    order = {node.name: position for position, node in enumerate(record.nodes)}
    # The images are the whole model's input. Means that the graph takes in front of a convolution are no module's.
    places = [one for one in record.places if one.reader in names or one.value == record.images]
    places = [one for one in places if one.error_max <= _SURELY] or places
    if not places:
        return None
    nearest = min(places, key=lambda one: order.get(one.value, -1))
    activations = derivation.knowledge.activations[nearest.value].values.float()
    way = f"{record.footholds[0]}, and the equations behind them," if record.footholds else "the equations"
    module = nearest.reader if nearest.reader in names else ""
    return KnownFeatures(module, False, False, activations, nearest.error_max, way)

"""Images found behind batch norm on the batch's own statistics, with their contrast as far as it is known."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from ..capture import BatchNormMode, CapturedUpdate, batch_norm_targets
from .cut import Cut, contrast_by_grid, hides_contrast, widest_contrast, widest_error
from .graph import Graph, Node
from .kinds import BatchStatisticsNorm, Convolution, Identity, Linear
from .record import Contrast

WIDEST = (
    "it is as wide as the range of pixels allows, as that of most photos is; that of photos in fog or at night is less"
)
"""What is said of a contrast that nothing tells."""
CONTRAST_HIDDEN = "Batch norm on the batch's own statistics hides the contrast of the whole batch from the gradient"


@dataclass(frozen=True)
class Shown:
    """Images at a contrast."""

    images: Float[Tensor, "image channel height width"]
    """As the model is given them."""
    error: Float[Tensor, " image"]
    """Estimated, relative."""
    said: str
    """What is known of the contrast, in one sentence; empty where nothing hides it."""
    contrast: Contrast = Contrast.SEEN


def contrast_of(graph: Graph, update: CapturedUpdate) -> Contrast:
    """Whether a network's first layers hide the contrast of a batch from all behind them.

    They do where nothing reads the images but convolutions or linear layers, and nothing reads these but batch norm on
    the batch's own statistics, whose result is the same for ``x`` and for ``f x`` but for eps. Their biases change
    nothing: the batch's mean takes them away. Statistics that the client sends tell the contrast all the same.

    Args:
        graph: Of the model in the client's mode.
        update: What the client sent.
    """
    if update.batch_norm is BatchNormMode.TRAIN_SHARED:
        return Contrast.SEEN
    first = _readers(graph, graph.images)
    scaled = bool(first) and all(isinstance(node.kind, Convolution | Linear) for node in first)
    behind = [reader for node in first for reader in _readers(graph, node.name)]
    hidden = scaled and bool(behind) and all(isinstance(node.kind, BatchStatisticsNorm) for node in behind)
    return Contrast.HIDDEN if hidden else Contrast.SEEN


def _readers(graph: Graph, value: str) -> list[Node]:
    """What computes with a value, through all that hands it on as it is."""
    found: list[Node] = []
    for node in graph.readers(value):
        found += _readers(graph, node.name) if isinstance(node.kind, Identity) else [node]
    return found


def on_shared_statistics(update: CapturedUpdate, model: nn.Module, cut: Cut) -> Cut:
    """The cut on the batch's statistics, where the client's buffers tell them exactly; else the cut as it is.

    Args:
        update: What the client sent.
        model: The server's, before the client's step.
        cut: Of its graph.
    """
    if update.batch_norm is not BatchNormMode.TRAIN_SHARED:
        return cut
    told = batch_norm_targets(update, model)
    return cut.on_statistics({name: (one.mean, one.var) for name, one in told.items() if one.exact})


def with_contrast(
    cut: Cut,
    images: Float[Tensor, "image channel height width"],
    error: Float[Tensor, " image"],
    bounds: tuple[Tensor, Tensor],
) -> Shown:
    """Images found from a cut, with the contrast of the whole batch.

    Args:
        cut: That they were found from.
        images: As the model is given them.
        error: Estimated, relative, of each.
        bounds: What black and white are to the model.
    """
    if not hides_contrast(cut, images):
        return Shown(images, error, "")
    contrast = contrast_by_grid(images, *bounds)
    if contrast is not None:
        said = (
            f"{CONTRAST_HIDDEN}; pixels that were 8-bit values tell it (mean square remainder {contrast.cost:.1g} of "
            "that of chance)."
        )
        return Shown(contrast.factor * images, error, said, Contrast.GRID)
    said = f"{CONTRAST_HIDDEN}, and no 8-bit values tell it: {WIDEST}."
    widest = widest_contrast(images, *bounds) * images
    off = widest_error(widest, *bounds)
    return Shown(widest, (error.square() + off**2).sqrt(), said, Contrast.HIDDEN)

"""Images found behind batch norm on the batch's own statistics, with their contrast as far as it is known."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from ..capture import BatchNormMode, CapturedUpdate, batch_norm_targets
from .cut import Cut, contrast_by_grid, hides_contrast

# Relative error of images whose contrast is that of the start: photos differ by about as much.
_UNKNOWN = 0.5


@dataclass(frozen=True)
class Shown:
    """Images at a contrast."""

    images: Float[Tensor, "image channel height width"]
    """As the model is given them."""
    error: Float[Tensor, " image"]
    """Estimated, relative."""
    said: str
    """What is known of the contrast, in one sentence; empty where nothing hides it."""


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
    start: Float[Tensor, "image channel height width"],
    bounds: tuple[Tensor, Tensor],
) -> Shown:
    """Images found from a cut, with the contrast of the whole batch.

    Args:
        cut: That they were found from.
        images: As the model is given them.
        error: Estimated, relative, of each.
        start: Where the descent began: the contrast of the photos that the decoder was fitted on.
        bounds: What black and white are to the model.
    """
    if not hides_contrast(cut, images):
        return Shown(images, error, "")
    contrast = contrast_by_grid(images, *bounds)
    if contrast is not None:
        said = (
            "Batch norm on the batch's own statistics hides the contrast of the whole batch from the gradient; pixels "
            f"that were 8-bit values tell it (mean square remainder {contrast.cost:.1g} of that of chance)."
        )
        return Shown(contrast.factor * images, error, said)
    factor = (images * start).sum() / images.square().sum().clamp_min(1e-300)
    said = (
        "Batch norm on the batch's own statistics hides the contrast of the whole batch from the gradient, and no "
        "8-bit values tell it: it is that of the public photos."
    )
    return Shown(factor * images, (error.square() + _UNKNOWN**2).sqrt(), said)

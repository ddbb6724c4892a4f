"""Whether this machine's memory holds what an update claims.

Where a model pools its features, its tensors fit images of any size and number, and a small update may claim thousands.
"""

from __future__ import annotations

from torch import nn

from ..capture import BatchNormMode, CapturedUpdate, UpdateError, batch_norm_layers
from ..capture.room import Shortage, shortage
from .labels import JOINT
from .request import Request
from .second_derivative import client_batch


def require_room(update: CapturedUpdate, model: nn.Module, request: Request) -> None:
    """Return quietly where the least that an attack holds at once fits the memory.

    Args:
        update: What is attacked.
        model: The server's model.
        request: Whether its labels, or its number of images at once, let a batch be attacked in parts.

    Raises:
        UpdateError: It does not; the sentence tells what was claimed, and what that takes.
    """

    def missing(at_once: int) -> Shortage | None:
        return shortage(model, update.image_shape, update.image_count, at_once, by_pixels=True)

    batch, parts = client_batch(update), _has_parts(update, model, request)
    asked = request.images_at_once
    if beyond := missing(min(asked or batch, batch) if parts else batch):
        channels, height, width = update.image_shape
        helps = parts and missing(1) is None
        lower = f"lower agents.images_at_once (now {asked or f'all {batch:,}'}), " if helps else ""
        raise UpdateError(
            f"the update claims {update.image_count:,} images of {channels} x {height} x {width}: to attack them "
            f"{beyond.words}; capture the update again where the claim is wrong (the model takes images of other sizes "
            f"too), {lower}or take a larger machine"
        )


def _has_parts(update: CapturedUpdate, model: nn.Module, request: Request) -> bool:
    """Whether images do not depend on each other, so that the graph of some is held at a time."""
    own_statistics = update.batch_norm is not BatchNormMode.EVAL and bool(batch_norm_layers(model))
    return update.local is None and request.labels != JOINT and not own_statistics

"""Whether this machine's memory holds what an update claims.

Where a model pools its features, its tensors fit images of any size and number, and a small update may claim thousands.
"""

from __future__ import annotations

from torch import nn

from ..capture import CapturedUpdate, UpdateError
from ..capture.room import missing_room
from .second_derivative import client_batch


def require_room(update: CapturedUpdate, model: nn.Module, images_at_once: int = 0) -> None:
    """Return quietly where the least that an attack holds at once fits the memory.

    Args:
        update: What is attacked.
        model: The server's model.
        images_at_once: Of a batch that is attacked in parts; 0: all of it.

    Raises:
        UpdateError: It does not; the sentence tells what was claimed, and what that takes.
    """
    batch = client_batch(update)
    at_once = batch if update.local is not None else min(images_at_once or batch, batch)
    if missing := missing_room(model, update.image_shape, update.image_count, at_once):
        channels, height, width = update.image_shape
        helps = update.local is None and not missing_room(model, update.image_shape, update.image_count, 1)
        lower = f"lower agents.images_at_once (now {at_once:,}), " if helps else ""
        raise UpdateError(
            f"the update claims {update.image_count:,} images of {channels} x {height} x {width}: to attack them "
            f"{missing}; capture the update again where the claim is wrong (the model takes images of other sizes "
            f"too), {lower}or take a larger machine"
        )

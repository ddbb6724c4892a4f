"""The final layer of one attack, looked at once: whoever needs it, and under whatever facts, asks here."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from ..fitting import fit
from ..update import CapturedUpdate
from .final_layer import FinalLayer, TracedLayer, no_final_layer, trace_final_layer
from .unmixing import Unmixed, UnmixOnce


class OneLook:
    """What an attack finds at the final layer: the layer is traced once, and each gradient of it is taken apart once.

    Facts that are learnt later change the gradient and not the layer, which is read anew from each update.
    """

    def __init__(self) -> None:
        self._of: tuple[object, ...] | None = None
        self._traced: TracedLayer | None = None
        self._unmix = UnmixOnce()

    def __reduce__(self) -> tuple[type[OneLook], tuple[()]]:
        # What follows from it travels; it itself would carry the gradient a second time.
        return OneLook, ()

    def final_layer(self, update: CapturedUpdate, model: nn.Module) -> FinalLayer:
        """See ``find_final_layer``; the model's weights may not change between two looks."""
        update, model = fit(update, model)
        of = (model, update.batch_norm, update.image_shape, update.image_count)
        if self._of != of:
            self._traced, self._of = trace_final_layer(update, model), of
        if self._traced is None:
            raise no_final_layer()
        return self._traced.read(update)

    def unmix(
        self, weight_gradient: Float[Tensor, "class feature"], image_count: int, smoothing: float = 0.0
    ) -> Unmixed | None:
        """See ``unmix``."""
        return self._unmix(weight_gradient, image_count, smoothing)

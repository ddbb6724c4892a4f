"""Every way into the final layer, the most exact one first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from ...capture import OneLook
from ...capture.labels.final_layer import FinalLayer
from .clipped import peel_scaled_head
from .fixed_point import peel_head
from .head import Head, ScaledHead
from .least_squares import peel_joint_head
from .unmixed import peel_unmixed_head

# Factors nearer to 1 than this, or than so many estimated errors, are none.
_LEAST_SCALING, _DOUBT = 1e-3, 2.0


def peel_final_layer(
    layer: FinalLayer,
    labels: Int[Tensor, " batch"],
    *,
    behind_relu: bool,
    scaled: bool,
    tolerance: float,
    look: OneLook | None = None,
    copies: Int[Tensor, " batch"] | None = None,
) -> ScaledHead:
    """The first solution whose estimated error is within the tolerance, else the one with the smallest.

    Args:
        layer: With the captured gradient of the mean cross-entropy.
        labels: The batch's labels.
        behind_relu: Whether the layer reads the output of a ReLU as it is.
        scaled: Allow for clipping.
        tolerance: Largest estimated relative error of the features.
        look: At the layer, where others ask it too.
        copies: How often each image counts, where that is known; then labels are in rising order, and images are told
            apart by the units that are shut or not at all.
    """

    def unmixed() -> ScaledHead | None:
        return peel_unmixed_head(layer, labels, scaled, look, copies) if behind_relu else None

    def fixed_point() -> ScaledHead | None:
        return _unscaled(peel_head(layer, labels), labels)

    def joint() -> ScaledHead | None:
        head = peel_joint_head(layer, labels)
        return None if head is None else _unscaled(head, labels)

    def clipped() -> ScaledHead | None:
        if not scaled or layer.bias_gradient is None or len(labels) >= len(layer.bias):
            return None
        return peel_scaled_head(layer, labels)

    if copies is not None and (known := unmixed()) is not None:
        return known
    ways: tuple[Callable[[], ScaledHead | None], ...] = (unmixed, fixed_point, joint, clipped)
    found: list[ScaledHead] = []
    for way in ways:
        head = way()
        if head is None:
            continue
        if head.head.error <= tolerance:
            return _without_idle_scales(head)
        found.append(head)
    return _without_idle_scales(min(found, key=lambda one: one.head.error))


def _without_idle_scales(head: ScaledHead) -> ScaledHead:
    """Factors that differ from 1 by less than what they are known to are 1."""
    off = float((head.scales - 1).abs().max())
    return _unscaled(head.head, head.scales) if off <= max(_LEAST_SCALING, _DOUBT * head.head.error) else head


def _unscaled(head: Head, labels: Tensor) -> ScaledHead:
    return ScaledHead(head, torch.ones(len(labels), dtype=torch.float64))

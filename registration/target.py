"""What candidates are aligned to: the mean of the others on one level, with its derivatives."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .agreement import OUTSIDE, others_mean
from .contrast import gradients
from .warp import homogeneous

_HUBER = 1.0  # residuals beyond this many robust deviations count linearly
_CORRELATED = 20.0  # pixels per independent observation: neighbours share noise, texture and what is missing
_GAIN_BOUNDS = (0.1, 2.0)


class Target:
    """The mean of the warped candidates, in the frame of the consensus.

    Two things are kept apart. The derivatives are those of the mean over *all* candidates, so that every Gauss-Newton
    step of every seed shares them (inverse compositional alignment, Baker & Matthews, IJCV 2004). The values that a
    candidate is compared with are those of the *other* candidates: its own noise, found again in the target, would
    hold it where it stands.
    """

    def __init__(
        self, warped: Float[Tensor, "seed image height width"], visible: Tensor, weights: Float[Tensor, " seed"]
    ) -> None:
        weight = weights[:, None, None, None] * visible.clamp_min(OUTSIDE)
        mean = (weight * warped).sum(0) / weight.sum(0)
        self.warped, self.visible = warped, visible
        self._columns: Tensor | None = None
        self.others = others_mean(warped, visible, weights)
        self.size = (warped.shape[-2], warped.shape[-1])
        self.across, self.down = gradients(mean)

    def jacobian(self, free: tuple[int, ...]) -> Float[Tensor, "image parameter pixel"]:
        """Derivative by the free entries of a homography at the identity.

        For ``W(x; p) = ((1+p0) x + p1 y + p2, p3 x + (1+p4) y + p5) / (1 + p6 x + p7 y)`` and the gradient (g, h) the
        row is ``(g x, g y, g, h x, h y, h, -(g x + h y) x, -(g x + h y) y)``.
        """
        if self._columns is None:
            slopes = torch.stack([self.across, self.down], dim=1).flatten(-2)[:, :, None]
            places = homogeneous(*self.size, slopes).flatten(-2)
            linear = (slopes * places).flatten(1, 2)
            along = (slopes[:, :, 0] * places[:2]).sum(1, keepdim=True)
            self._columns = torch.cat([linear, -along * places[:2]], dim=1)
        return self._columns if len(free) == 8 else self._columns[:, list(free)]

    def compare(
        self, warped: Float[Tensor, "seed image height width"], visible: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Residual of warped candidates, its robust weights, and the gain of the target that fits each best.

        The gain (one per candidate image, last two dimensions 1) accounts for what averaging washes out: without it
        a blurred target makes every step too long.
        """
        shown = visible * self.others
        fit = (shown * warped).sum((-2, -1)) / (shown * self.others).sum((-2, -1)).clamp_min(1e-9)
        gain = fit.clamp(*_GAIN_BOUNDS)[..., None, None]
        residual = torch.addcmul(warped, gain, self.others, value=-1)
        return residual, robust_weight(residual, visible), gain


def robust_weight(
    residual: Float[Tensor, "*batch height width"], visible: Tensor
) -> Float[Tensor, "*batch height width"]:
    """Huber's weights over the noise variance, per independent observation: sums of them are information.

    The deviation is 1.2533 times the mean absolute residual, which it is for a normal distribution.
    """
    size = residual.abs()
    deviation = 1.2533 * (size * visible).sum((-2, -1), keepdim=True) / visible.sum((-2, -1), keepdim=True).clamp_min(1)
    deviation = deviation.clamp_min(1e-3)
    huber = (_HUBER * deviation / size.clamp_min_(1e-12)).clamp_max_(1)
    return huber.mul_(visible).div_(deviation**2 * _CORRELATED)

"""An attacker who allows for the defence: what is assumed about it, and how the gradient match changes.

A defence that is only tested against an attack that ignores it proves nothing. What can be read off the update itself
is; what the client says about its defence (``CapturedUpdate.defence``, which nobody checks) is a hypothesis for what
cannot be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

# A scale that falls to nothing would end the descent: the derivative of a batch that counts for nothing is zero.
_LEAST_SCALE = 1e-6


@dataclass(frozen=True)
class Adaptation:
    """What is allowed for. The default allows for nothing and leaves every number as it is."""

    slack: Mapping[str, Tensor] = field(default_factory=dict)
    """By parameter name: how far each entry may be off at no cost, a scalar or of the entry's shape."""
    left_out: frozenset[str] = frozenset()
    """Parameters whose gradient is not matched."""
    free_scale: bool = False
    """Only the direction of the whole gradient counts: the candidate's is scaled by least squares first."""
    image_weights: Float[Tensor, " batch"] | None = None
    """Weight of each image's loss in the mean; None for equal ones."""
    prior_factor: float = 1.0
    """What the weights of the image priors are multiplied with."""
    layer_weights: Mapping[str, float] = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    """One sentence for each assumption."""

    def matched(
        self, names: Sequence[str], found: Sequence[Tensor], target: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The gradients to compare in place of these, in the same order."""
        kept = [i for i, name in enumerate(names) if name not in self.left_out]
        pairs = [(names[i], found[i], target[i]) for i in kept]
        if self.free_scale:
            product = torch.stack([(f * t).sum() for _, f, t in pairs]).sum()
            square = torch.stack([f.square().sum() for _, f, _ in pairs]).sum()
            scale = (product / square.clamp_min(1e-30)).clamp_min(_LEAST_SCALE)
            pairs = [(name, scale * f, t) for name, f, t in pairs]
        ours = [self._within(name, f, t) for name, f, t in pairs]
        w = [self.layer_weights.get(name, 1.0) for name, _, _ in pairs]
        return [a * b for a, b in zip(w, ours)], [a * t for a, (_, _, t) in zip(w, pairs)]

    def _within(self, name: str, found: Tensor, target: Tensor) -> Tensor:
        slack = self.slack.get(name)
        if slack is None:
            return found
        excess = found - target
        return target + excess.sign() * (excess.abs() - slack.to(excess)).clamp_min(0)

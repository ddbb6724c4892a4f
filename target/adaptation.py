"""How the gradient match changes for an attacker who allows for a defence; ``defence_evidence.py`` says for which."""

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
    """By parameter name: how far each entry may be off at no cost, a scalar or of the gradient's shape."""
    left_out: frozenset[str] = frozenset()
    """Parameters whose gradient is not matched."""
    free_scale: bool = False
    """Only the direction of the whole gradient counts: the candidate's is scaled by least squares first, over the
    entries without slack."""
    image_weights: Float[Tensor, " batch"] | None = None
    """Weight of each image's loss in the mean; None for equal ones."""
    pooled: bool = False
    """All entries are compared as one vector instead of tensor by tensor: noise is as large in each of them."""
    unmatched: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """By parameter name: directions, orthogonal and of length 1, along which the gradient is not compared."""
    messages: tuple[str, ...] = ()
    """One sentence for each assumption."""

    def and_also(self, other: Adaptation) -> Adaptation:
        """What allows for both; the image weights are this one's where it has any."""
        return Adaptation(
            slack={**self.slack, **other.slack},
            left_out=self.left_out | other.left_out,
            free_scale=self.free_scale or other.free_scale,
            image_weights=other.image_weights if self.image_weights is None else self.image_weights,
            pooled=self.pooled or other.pooled,
            unmatched={**self.unmatched, **other.unmatched},
            messages=self.messages + other.messages,
        )

    def matched(
        self,
        names: Sequence[str],
        found: Sequence[Tensor],
        target: Sequence[Tensor],
        weights: Sequence[float] | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The candidate's gradients and the captured ones that are to be compared in place of these.

        Args:
            names: Of the parameters.
            found: The candidate's gradients, one for each name.
            target: The captured ones.
            weights: What each pair is multiplied with, 0 to leave it out; None for 1.
        """
        kept = [k for k, name in enumerate(names) if name not in self.left_out and (weights is None or weights[k] > 0)]
        ours, theirs = [found[position] for position in kept], [target[position] for position in kept]
        if self.unmatched:
            ours, theirs = (
                [self._across(names[k], g) for k, g in zip(kept, tensors, strict=True)] for tensors in (ours, theirs)
            )
        if self.free_scale:
            known = [self._known(names[k], f, t) for k, f, t in zip(kept, ours, theirs, strict=True)]
            product = torch.stack([(f * t).sum() for f, t in known]).sum()
            square = torch.stack([f.square().sum() for f, _ in known]).sum()
            scale = (product / square.clamp_min(1e-30)).clamp_min(_LEAST_SCALE)
            ours = [scale * f for f in ours]
        near = [self._within(names[k], f, t) for k, f, t in zip(kept, ours, theirs, strict=True)]
        if weights is not None:
            near = [weights[k] * tensor for k, tensor in zip(kept, near, strict=True)]
            theirs = [weights[k] * tensor for k, tensor in zip(kept, theirs, strict=True)]
        if self.pooled:
            near, theirs = ([torch.cat([t.flatten() for t in tensors])] for tensors in (near, theirs))
        return near, theirs

    def _across(self, name: str, gradient: Tensor) -> Tensor:
        """The gradient without its part along the directions that are not compared."""
        for direction in self.unmatched.get(name, ()):
            along = direction.to(gradient)
            gradient = gradient - (gradient * along).sum() * along
        return gradient

    def _known(self, name: str, found: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The entries of which more is known than a bound: the others would drag the scale down."""
        slack = self.slack.get(name)
        if slack is None:
            return found, target
        exact = (slack == 0).to(found)
        return exact * found, exact * target

    def _within(self, name: str, found: Tensor, target: Tensor) -> Tensor:
        """The candidate's gradient moved towards the captured one by the slack, at most onto it."""
        slack = self.slack.get(name)
        if slack is None:
            return found
        excess = found - target
        return target + excess.sign() * (excess.abs() - slack.to(excess)).clamp_min(0)

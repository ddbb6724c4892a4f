"""A candidate's gradients of some parameters beside the captured ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...target.adaptation import Adaptation
from ..gradient_losses import GRADIENT_LOSSES
from ..local_steps import fit_scale
from ..objective_config import GradientLoss


@dataclass(frozen=True)
class Comparison:
    """What was captured of some parameters, and how a candidate's gradients are compared with it."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    targets: tuple[Tensor, ...]
    loss: GradientLoss
    adaptation: Adaptation
    """What is allowed for."""
    scale_known: bool
    """False: the gradients are compared up to one common factor."""
    weights: tuple[float, ...] | None = None
    """What each pair of gradients is multiplied with; None for 1."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        gradients: Mapping[str, Tensor],
        loss: GradientLoss,
        adaptation: Adaptation,
        scale_known: bool,
    ) -> Comparison:
        """The comparison of all parameters that the update has, in its order.

        Args:
            model: Whose parameters they are.
            gradients: The captured ones, by parameter name.
            loss: The distance between gradients.
            adaptation: What is allowed for.
            scale_known: Whether the scale of the captured gradients is.
        """
        parameters = dict(model.named_parameters())
        targets = tuple(gradient.to(parameters[name].device) for name, gradient in gradients.items())
        return cls(
            tuple(gradients), tuple(parameters[name] for name in gradients), targets, loss, adaptation, scale_known
        )

    def only(self, names: Collection[str]) -> Comparison:
        """The same for fewer parameters, of equal weight."""
        kept = [k for k, name in enumerate(self.names) if name in names]
        return replace(
            self,
            names=tuple(self.names[k] for k in kept),
            parameters=tuple(self.parameters[k] for k in kept),
            targets=tuple(self.targets[k] for k in kept),
            weights=None,
        )

    def distance(self, found: Sequence[Tensor], loss: GradientLoss | None = None) -> Float[Tensor, ""]:
        """The distance of a candidate's gradients to the captured ones.

        Args:
            found: One for each name.
            loss: Another one than the configured one.
        """
        if not self.scale_known:
            found = fit_scale(found, self.targets)
        return GRADIENT_LOSSES[loss or self.loss](*self.matched(found))

    def matched(self, found: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The candidate's gradients and the captured ones that are to be compared in place of these; see `Adaptation`.

        Args:
            found: One for each name.
        """
        return self.adaptation.matched(self.names, found, self.targets, self.weights)

    def derivatives(
        self, output: Tensor, grad_outputs: Tensor | None = None, create_graph: bool = False
    ) -> tuple[Tensor, ...]:
        """One derivative for each parameter, zero for one that the output does not depend on: as a client captures it.

        Args:
            output: Of the model, with a graph.
            grad_outputs: The derivative of a loss by the output; None where the output is a loss.
            create_graph: Whether the result has a derivative by the images.
        """
        if not output.requires_grad:
            return tuple(torch.zeros_like(parameter) for parameter in self.parameters)
        return torch.autograd.grad(
            output, self.parameters, grad_outputs, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )

"""Adam on one tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from .optimiser import require_shape

_DECAYS = (0.9, 0.999)
_EPSILON = 1e-8


class Adam:
    """Kingma & Ba, ICLR 2015, algorithm 1, with the usual decays 0.9 and 0.999.

    ``torch.optim.Adam`` does the same (a test compares them), but its first use imports the compiler: 32 MB and
    seconds in each agent's process. Here the state is plain tensors, which is also what a checkpoint needs.

    Args:
        variables: Descended in place.
    """

    names = frozenset({"first_moment", "second_moment"})

    def __init__(self, variables: Tensor) -> None:
        self.steps = 0
        self.first_moment = torch.zeros_like(variables)
        self.second_moment = torch.zeros_like(variables)

    @torch.no_grad()
    def step(self, variables: Tensor, derivative: Tensor, learning_rate: float) -> None:
        """Move ``variables`` by one step."""
        self.steps += 1
        self.first_moment.lerp_(derivative, 1 - _DECAYS[0])
        self.second_moment.mul_(_DECAYS[1]).addcmul_(derivative, derivative, value=1 - _DECAYS[1])
        size = learning_rate / (1 - _DECAYS[0] ** self.steps)
        scale = self.second_moment.sqrt().div_((1 - _DECAYS[1] ** self.steps) ** 0.5).add_(_EPSILON)
        variables.addcdiv_(self.first_moment, scale, value=-size)

    def state(self) -> dict[str, Tensor]:
        """See `Optimiser`."""
        return {name: getattr(self, name).cpu().clone() for name in sorted(self.names)}

    def require_fit(self, state: dict[str, Tensor]) -> None:
        """See `Optimiser`."""
        for name in sorted(self.names):
            require_shape(f"this state's {name}", state[name], self.first_moment.shape)

    def restore(self, state: dict[str, Tensor], steps: int) -> None:
        """See `Optimiser`."""
        for name in self.names:
            getattr(self, name).copy_(state[name])
        self.steps = steps

"""Adam on one tensor."""

from __future__ import annotations

import torch
from torch import Tensor

_DECAYS = (0.9, 0.999)
_EPSILON = 1e-8


class Adam:
    """Kingma & Ba, ICLR 2015, algorithm 1, with the usual decays 0.9 and 0.999.

    ``torch.optim.Adam`` does the same (a test compares them), but its first use imports the compiler: 32 MB and
    seconds in each agent's process. Here the state is plain tensors, which is also what a checkpoint needs.

    Args:
        images: Descended in place.
    """

    def __init__(self, images: Tensor) -> None:
        self.steps = 0
        self.first_moment = torch.zeros_like(images)
        self.second_moment = torch.zeros_like(images)

    @torch.no_grad()
    def step(self, images: Tensor, derivative: Tensor, learning_rate: float) -> None:
        """Move ``images`` by one step."""
        self.steps += 1
        self.first_moment.lerp_(derivative, 1 - _DECAYS[0])
        self.second_moment.mul_(_DECAYS[1]).addcmul_(derivative, derivative, value=1 - _DECAYS[1])
        size = learning_rate / (1 - _DECAYS[0] ** self.steps)
        scale = self.second_moment.sqrt().div_((1 - _DECAYS[1] ** self.steps) ** 0.5).add_(_EPSILON)
        images.addcdiv_(self.first_moment, scale, value=-size)

"""Our Adam against torch's."""

from __future__ import annotations

import torch
from gradinversion.agents.adam import Adam


def test_equals_torch_optim() -> None:
    torch.manual_seed(0)
    ours = torch.randn(2, 3, 4, 4)
    theirs = ours.clone().requires_grad_()
    adam, reference = Adam(ours), torch.optim.Adam([theirs], lr=0.1)
    for step in range(50):
        derivative, rate = torch.randn(2, 3, 4, 4), 0.1 / (1 + step)
        adam.step(ours, derivative, rate)
        theirs.grad = derivative
        reference.param_groups[0]["lr"] = rate
        reference.step()
    assert torch.allclose(ours, theirs.detach(), rtol=1e-5, atol=1e-6)

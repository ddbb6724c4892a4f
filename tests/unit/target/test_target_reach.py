"""A loss that has no derivative by the pixels is a fact to state."""

from __future__ import annotations

import pytest
import torch
from gradinversion.capture import capture_gradient
from gradinversion.coordinator import AttackConfig
from gradinversion.target import weigh_evidence
from gradinversion.target.preparation import prepare
from torch import Tensor, nn


class _Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "rounding":
            x = (64 * x).round() / 64
        if self.kind == "detach":
            x = x.detach()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.kind != "no_grad"):
            x = self.body(x)
        return self.head(x)


@pytest.mark.parametrize("kind", ["rounding", "detach", "no_grad"])
def test_it_is_a_limit_of_the_attack_and_not_of_what_peeling_gives(kind: str) -> None:
    torch.manual_seed(0)
    model = _Net(kind).eval()
    update = capture_gradient(model, torch.rand(2, 3, 8, 8), torch.tensor([3, 7]))
    preparation = prepare(update, model, AttackConfig().request)
    assert "does not depend on the pixels" in preparation.limits[0]
    assert preparation.limits[0] in preparation.messages
    assert preparation.labels.labels.tolist() == [3, 7]
    assert preparation.target.anchor is not None


def test_a_plain_network_has_no_limit() -> None:
    torch.manual_seed(0)
    model = _Net("plain").eval()
    assert not weigh_evidence(capture_gradient(model, torch.rand(2, 3, 8, 8), torch.tensor([3, 7])), model).limits

"""Networks without a kink are told from those with one, whether it is a module or a function."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import BatchNormMode, capture_gradient
from gradinversion.peeling import peel
from gradinversion.peeling.continuity import is_smooth_before
from torch import Tensor, nn

_SHAPE = (3, 16, 16)


def _network(activation: type[nn.Module], pool: type[nn.Module] = nn.AvgPool2d) -> nn.Sequential:
    layers = [nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), activation(), nn.Conv2d(6, 6, 3, 1, 1), activation()]
    return nn.Sequential(*layers, pool(2), nn.Flatten(), nn.Linear(96, 10)).eval()


class _Functional(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.head, self._activation = nn.Conv2d(3, 4, 3), nn.Linear(4, 10), activation

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self._activation(self.layer(images)).mean((2, 3)))
        return logits


@pytest.mark.parametrize("mode", list(BatchNormMode))
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.Mish])
def test_smooth_networks(activation: type[nn.Module], mode: BatchNormMode) -> None:
    assert is_smooth_before(_network(activation), _SHAPE, mode, "7")


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.SELU, nn.Hardtanh, nn.Hardswish])
def test_networks_with_a_kink(activation: type[nn.Module]) -> None:
    assert not is_smooth_before(_network(activation), _SHAPE, BatchNormMode.EVAL, "7")


def test_a_maximum_is_a_kink() -> None:
    assert not is_smooth_before(_network(nn.Tanh, nn.MaxPool2d), _SHAPE, BatchNormMode.EVAL, "7")


@pytest.mark.parametrize(("activation", "smooth"), [(torch.tanh, True), (F.relu, False), (torch.abs, False)])
def test_functions_are_seen(activation: Callable[[Tensor], Tensor], smooth: bool) -> None:
    assert is_smooth_before(_Functional(activation), _SHAPE, BatchNormMode.EVAL, "head") is smooth


def test_only_what_lies_before_counts() -> None:
    network = _network(nn.ReLU)
    assert is_smooth_before(network, _SHAPE, BatchNormMode.EVAL, "2")
    assert not is_smooth_before(network, _SHAPE, BatchNormMode.EVAL, "3")


@pytest.mark.parametrize(("activation", "continuous"), [(nn.Tanh, {"0", "1", "3"}), (nn.LeakyReLU, set())])
def test_all_gradients_before_the_anchor_of_a_smooth_network_are_continuous(
    activation: type[nn.Module], continuous: set[str]
) -> None:
    torch.manual_seed(0)
    model = _network(activation)
    images, labels = torch.rand(3, *_SHAPE), torch.arange(3)
    anchor = peel(capture_gradient(model, images, labels), model, labels).anchor
    assert anchor is not None
    assert anchor.module == "7"
    assert {name.split(".")[0] for name in anchor.continuous} == continuous

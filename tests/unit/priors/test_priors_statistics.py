"""The statistics that a batch leaves at the inputs of layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gradinversion.priors import InputStatistics, batch_norm_distance
from torch import Tensor, nn


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 5, 2), (1, 4, 1, 1)])
def test_they_are_numpys_mean_and_biased_variance(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, dtype=torch.float64)
    layer = nn.Identity()
    with InputStatistics({"here": layer}) as statistics:
        layer(values)
    mean, var = statistics.found["here"]
    over = tuple(d for d in range(len(shape)) if d != 1)
    np.testing.assert_allclose(mean.numpy(), values.numpy().mean(axis=over), atol=1e-12)
    np.testing.assert_allclose(var.numpy(), values.numpy().var(axis=over), atol=1e-12)


def test_they_are_those_of_the_layer_s_input_not_of_the_model_s() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
    images = torch.randn(2, 3, 8, 8)
    with InputStatistics({"1": model[1], "4": model[4]}) as statistics:
        model.eval()(images)
    first = model[0](images)
    second = model[3](model[2](model[1](first)))
    torch.testing.assert_close(statistics.found["1"][0], first.mean((0, 2, 3)))
    torch.testing.assert_close(statistics.found["4"][1], second.var((0, 2, 3), correction=0))


def test_a_distance_to_them_has_a_derivative_by_the_images() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2)).double().eval()
    target = {"1": (torch.randn(2, dtype=torch.float64), torch.rand(2, dtype=torch.float64))}

    def distance(images: Tensor) -> Tensor:
        with InputStatistics({"1": model[1]}) as statistics:
            model(images)
        return batch_norm_distance(statistics.found, target)

    images = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(distance, (images,))


def test_one_value_per_feature_has_no_variance_and_a_finite_derivative() -> None:
    layer = nn.Identity()
    values = torch.randn(1, 4, requires_grad=True)
    with InputStatistics({"here": layer}) as statistics:
        layer(values)
    value = batch_norm_distance(statistics.found, {"here": (torch.zeros(4), torch.ones(4))})
    (derivative,) = torch.autograd.grad(value, values)
    assert float(statistics.found["here"][1].detach().abs().max()) == 0.0
    assert bool(torch.isfinite(derivative).all())


def test_the_hooks_are_gone_afterwards() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with InputStatistics({"1": model[1]}):
        assert _hooks(model) == 1
    assert _hooks(model) == 0


def test_the_hooks_are_gone_when_the_model_fails() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(3, 3))
    statistics = InputStatistics({"1": model[1]})
    with pytest.raises(RuntimeError), statistics:
        model(torch.randn(1, 3, 8, 8))
    assert _hooks(model) == 0
    assert set(statistics.found) == {"1"}  # it ran before the failure


def test_entering_again_forgets_the_last_batch() -> None:
    used, unused = nn.Identity(), nn.Identity()
    statistics = InputStatistics({"used": used, "unused": unused})
    with statistics:
        used(torch.zeros(2, 3)), unused(torch.zeros(2, 3))
    with statistics:
        used(torch.ones(2, 3))
    assert set(statistics.found) == {"used"}
    assert float(statistics.found["used"][0].min()) == 1.0

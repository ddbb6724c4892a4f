"""A model is run with other tensors than its own, and is left as it was."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from gradinversion.capture import call_with
from gradinversion.capture.room import kept_bytes
from torch import nn


def twice_by_name() -> nn.Module:
    """One convolution and one batch norm under two names."""
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    net.extend([nn.ReLU(), net[0], net[1], nn.Flatten(), nn.Linear(12, 2)])
    return net.eval()


def tied() -> nn.Module:
    """Two convolutions with one weight."""
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(12, 2))
    net[2].weight = net[0].weight
    return net.eval()


@pytest.mark.parametrize("make", [twice_by_name, tied])
def test_other_tensors_stand_wherever_their_own_do_and_the_model_stays(make: type[nn.Module]) -> None:
    model, images = make(), torch.rand(2, 3, 2, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    own = dict(model.named_parameters())
    changed = deepcopy(model)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.5)
    found = call_with(model, {name: 1.5 * parameter.detach() for name, parameter in own.items()}, images)
    assert torch.equal(found, changed(images))
    assert all(parameter is own[name] for name, parameter in model.named_parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("make", [twice_by_name, tied])
def test_what_a_forward_pass_keeps_is_asked_without_a_trace(make: type[nn.Module]) -> None:
    model, images = make(), torch.rand(2, 3, 2, 2)
    before = model(images)
    assert kept_bytes(model, (3, 2, 2), 2, by_pixels=True) > 0
    assert torch.equal(model(images), before)

"""A local Ray for each module, and one small attack."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import ray
import torch
from gradinversion.capture import CapturedUpdate, capture_gradient
from torch import nn


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=100 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 4)).eval()


@pytest.fixture(scope="module")
def update(model: nn.Module) -> CapturedUpdate:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return capture_gradient(model, images, torch.tensor([0, 3]), normalisation=((0.5,) * 3, (0.25,) * 3))

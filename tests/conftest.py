"""Every test: one thread and the same random numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator

import jaxtyping
import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_numbers() -> Iterator[None]:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(autouse=True)
def _shapes_are_checked(request: pytest.FixtureRequest) -> None:
    """Except where a test gives wrong ones on purpose: there the package itself must notice."""
    jaxtyping.config.update("jaxtyping_disable", "wrong_shapes" in request.keywords)

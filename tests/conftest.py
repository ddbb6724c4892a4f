"""Every test: one thread, the same random numbers, arrays that are checked; and which tests come last."""

from __future__ import annotations

import random
from collections.abc import Iterator

import jaxtyping
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
# Folders of tests that start processes of their own: Ray, or the real command.
DISTRIBUTED = {"distributed", "end_to_end"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a ``slow`` test last: they start the most processes, and unit tests beside them have ended."""
    slow = {item.path for item in items if "slow" in item.keywords}
    for item in items:
        if item.path.parent.name in DISTRIBUTED:
            item.add_marker(pytest.mark.distributed)
    items.sort(key=lambda item: item.path in slow)


@pytest.fixture(scope="session", autouse=True)
def _state_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What runs remember of the user's code is kept apart from the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


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

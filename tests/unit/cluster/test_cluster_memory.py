"""Where memory ran out: what a run needs, and what makes that less."""

from __future__ import annotations

import pytest
import torch
from gradinversion.agents import AgentsConfig
from gradinversion.capture import capture_gradient
from gradinversion.cluster.failures import LostError, MemoryLostError
from gradinversion.cluster.memory import least_bytes, told_what_to_lower
from gradinversion.coordinator import AttackConfig
from torch import nn


def test_the_sentence_names_what_is_needed_and_the_key_to_lower() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    update = capture_gradient(model, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
    # 386 weights in four copies and two images in six, of four bytes each, beside the process.
    assert least_bytes(update, model) == 400 * 2**20 + 4 * 386 * 4 + 6 * 2 * 192 * 4
    config = AttackConfig(agents=AgentsConfig(count=3))
    with pytest.raises(MemoryLostError) as found, told_what_to_lower(update, model, config):
        raise MemoryLostError("The machine ran out of memory.")
    for part in ("Each of the 3 agents needs 400 MB", "2 images of 8 x 8 px", "agents.count (now 3)"):
        assert part in str(found.value)
    with pytest.raises(LostError, match=r"^a machine$"), told_what_to_lower(update, model, config):
        raise LostError("a machine")

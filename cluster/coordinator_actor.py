"""The coordinator as a Ray actor: it owns the agents; whoever started the run only looks on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from torch import nn

from ..capture import CapturedUpdate
from ..coordinator import AttackConfig, Coordinator, Reconstruction, Status
from .ray_group import RayGroup
from .resources import Share


class CoordinatorProcess:
    """What runs inside the actor: ``run`` in one thread, ``status`` and ``stop`` answered by others."""

    def __init__(
        self,
        update: CapturedUpdate,
        model: nn.Module,
        config: AttackConfig,
        share: Share,
        threads: int,
        out: str | None,
        resume: bool,
    ) -> None:
        self._threads = threads
        self._group = RayGroup(config, share)
        notes = (share.message,) if share.message else ()
        self._coordinator = Coordinator(update, model, config, self._group, Path(out) if out else None, resume, notes)

    def run(self) -> Reconstruction:
        """The whole attack."""
        torch.set_num_threads(self._threads)
        return self._coordinator.run()

    def status(self) -> Status:
        """Where the run is, with each agent's step as of now."""
        status = self._coordinator.status
        return replace(status, steps=tuple(self._group.steps())) if status.phase == "optimising" else status

    def stop(self) -> None:
        """End at the next round boundary."""
        self._coordinator.stop()


# Ray adds .remote and .options at run time, which its types only tell for decorated classes.
CoordinatorActor: Any = ray.remote(CoordinatorProcess)

"""The coordinator as a Ray actor: it owns the run; whoever started it only looks on, and may leave."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray import cloudpickle
from torch import nn

from ..capture import CapturedUpdate, ModelSource
from ..coordinator import AttackConfig, Coordinator, FencedError, Phase, Reconstruction, Status, Storage, log_as_json
from .freed_memory import give_back_now, give_back_what_is_freed
from .inputs import load_inputs
from .metrics import RunMetrics
from .ray_group import RayGroup
from .resources import Allotment
from .shipping import get_inputs

_LOOK_SECONDS = 1.0
# That takes hundredths of a second.
_LOOKS_BETWEEN_TRIMS = 5
# After the end, somebody who watches has this long to take the result; later it is found in the storage.
_LINGER_SECONDS = 30.0
# Between two attempts to save a result for which there was no room.
_KEEP_SECONDS = 5.0


@dataclass(frozen=True)
class RunSpec:
    """What a run is made of. Small: Ray keeps it to make the coordinator's process again."""

    name: str
    config: AttackConfig
    allotment: Allotment
    threads: int
    storage: Storage | None
    resume: bool
    detached: bool
    source: ModelSource | None
    """With one, update and model are read from the storage; without, they came as references."""
    restart: bool = False
    """Whether what lies in the storage may be deleted."""


class CoordinatorProcess:
    """What runs inside the actor: the run in a thread of its own from the first moment on, and answers about it.

    Args:
        spec: The run.
        inputs: The reference to the update and the model, pickled, for a run without a source: of one that stands among
            its arguments Ray warns the user, who can do nothing about it.
    """

    def __init__(self, spec: RunSpec, inputs: bytes | None) -> None:
        log_as_json()
        give_back_what_is_freed()
        self._spec, self._inputs = spec, inputs
        self._group: RayGroup | None = None
        self._coordinator: Coordinator | None = None
        self._stop_asked = False
        self._end: Reconstruction | BaseException | None = None
        self._ended, self._taken = threading.Event(), threading.Event()
        threading.Thread(target=self._live, daemon=True, name="run").start()
        threading.Thread(target=self._export, daemon=True, name="metrics").start()

    def _live(self) -> None:
        torch.set_num_threads(self._spec.threads)
        try:
            self._end = self._run()
        # Whatever it was, it is told to whoever watches.
        except BaseException as error:
            self._end = error
            self._tell_failure(error)
        fenced = isinstance(self._end, FencedError)
        if self._group is not None and not fenced:
            self._group.close()
        self._ended.set()
        self._keep()
        # A coordinator that was replaced shares its name with its successor: ending the actor would end that one.
        if self._spec.detached and not fenced:
            self._taken.wait(_LINGER_SECONDS)
            time.sleep(_LOOK_SECONDS)  # the result is on its way
            ray.kill(ray.get_runtime_context().current_actor)

    def _keep(self) -> None:
        """Hold a result that the storage had no room for, until it has, or whoever began the run ends this process."""
        result, coordinator = self._end, self._coordinator
        if isinstance(result, Reconstruction) and coordinator is not None and not coordinator.kept:
            while not coordinator.keep(result):
                time.sleep(_KEEP_SECONDS)

    def _tell_failure(self, error: BaseException) -> None:
        """For who looks later, in the log of this process."""
        text = f"The run ended: {str(error).strip() or type(error).__name__}"
        logging.getLogger("gradinversion").error("%s", text, exc_info=error)

    def _run(self) -> Reconstruction:
        spec, inputs = self._spec, self._load()
        # Made again by Ray after its process was lost: go on, whatever the run was told at first.
        again = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        self._group = RayGroup(spec.config, spec.allotment, spec.name, spec.detached, spec.storage, fresh=not again)
        notes = (spec.allotment.message,) if spec.allotment.message else ()
        resume = spec.resume or again
        self._coordinator = Coordinator(*inputs, spec.config, self._group, spec.storage, resume, notes, spec.restart)
        del inputs  # the coordinator makes a copy of the model, and lets go of this one
        if self._stop_asked:
            self._coordinator.stop()
        return self._coordinator.run()

    def _load(self) -> tuple[CapturedUpdate, nn.Module]:
        if self._spec.source is not None and self._spec.storage is not None:
            return load_inputs(self._spec.storage, self._spec.source)
        assert self._inputs is not None
        return get_inputs(cloudpickle.loads(self._inputs))

    def _export(self) -> None:
        """What Prometheus sees; and now and then what this process no longer needs goes back to the machine."""
        metrics = RunMetrics(self._spec.name)
        looks = 0
        while not self._ended.wait(_LOOK_SECONDS):
            looks += 1
            if looks % _LOOKS_BETWEEN_TRIMS == 0:
                give_back_now()
            if self._coordinator is not None:
                metrics.observe(self._coordinator.status)
        metrics.close()

    def status(self) -> Status | None:
        """Where the run is, with each agent's step as of now; None before it has begun."""
        if self._coordinator is None or self._group is None:
            return None
        status = self._coordinator.status
        if self._ended.is_set():
            failed = isinstance(self._end, BaseException)
            return replace(status, phase=Phase.FAILED if failed else Phase.FINISHED, wait=None)
        if status.phase is not Phase.OPTIMISING:
            return status
        steps = self._group.steps()
        seeds = tuple(replace(seed, step=max(seed.step, steps.get(seed.seed, 0))) for seed in status.seeds)
        return replace(status, seeds=seeds)

    def result(self) -> Reconstruction:
        """The end of the run, once it has come."""
        self._ended.wait()
        self._taken.set()
        if isinstance(self._end, BaseException):
            raise self._end
        assert self._end is not None
        return self._end

    def ended(self) -> bool:
        """Whether there is nothing more to come."""
        return self._ended.is_set()

    def stop(self) -> None:
        """End at the next round boundary."""
        self._stop_asked = True
        if self._coordinator is not None:
            self._coordinator.stop()


# Ray adds .remote and .options at run time, which its types only tell for decorated classes.
CoordinatorActor: Any = ray.remote(CoordinatorProcess)

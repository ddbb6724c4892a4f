"""Begin a run on Ray, or find one that is under way, and look on until it ends."""

from __future__ import annotations

import hashlib
import math
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayTaskError
from torch import nn

from ..capture import CapturedUpdate, ModelSource
from ..capture.fitting import fit
from ..coordinator import MOST_LEGS, AttackConfig, Reconstruction, Status, Storage, read_result
from ..coordinator.checkpoints import require_no_saved_run
from ..coordinator.serial_group import attack
from ..refusal import ConfigError
from ..storage.lock import holding
from .connection import connected
from .coordinator_actor import CoordinatorActor, RunSpec
from .failures import ClusterError, lost
from .freed_memory import give_back_now
from .inputs import store_inputs
from .memory import told_what_to_lower
from .ray_group import NAMESPACE
from .resources import allot
from .shipping import put_inputs

_LOOK_SECONDS = 0.5
_HEAD = "node:__internal_head__"
# A storage that fails for a while is tried again for so long before a round is given up.
_STORAGE_PATIENCE_SECONDS = 60.0
# Of a coordinator that ends with the one who wants it: one that fails again and again is not begun for ever.
_MOST_RESTARTS = 3

Watch = Callable[[Status], None]


class DetachedError(KeyboardInterrupt):
    """Whoever looked on was interrupted; the run goes on without."""


def reconstruct(
    update: CapturedUpdate,
    model: nn.Module,
    config: AttackConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    restart: bool = False,
    watch: Watch | None = None,
    source: ModelSource | None = None,
    detach: bool = True,
    in_process: bool = False,
) -> Reconstruction:
    """Run the attack: agents and a coordinator as Ray actors, on the cluster that is there or on this machine.

    Joins the Ray that is already initialised, or the one of ``RAY_ADDRESS`` or of ``ray start`` on this machine;
    otherwise starts one here and ends it afterwards. On a cluster that was joined a run with ``out`` is detached: it
    goes on when this process ends, and `attend` looks on again.

    Args:
        update: What the server holds.
        model: The server's model; wrappers such as DataParallel and ``torch.compile`` are taken off.
        config: The attack; the defaults are the preset ``gradinversion``.
        out: Folder or URL for checkpoints, ``metrics.jsonl`` and ``events.jsonl``; None keeps none. On several machines
            it must be reachable from all of them.
        resume: Continue from the newest checkpoint in ``out``; looks on where that run is still under way.
        restart: Delete the checkpoints and the result that lie in ``out``; without it and ``resume`` they are refused.
        watch: Called about twice a second with the state of the run.
        source: How to build the model again. With it a detached run survives the loss of its coordinator also when this
            process is gone.
        detach: False: the run ends with this process also on a cluster that was joined. With ``out`` it goes on after
            the loss of its coordinator's node.
        in_process: True: everything in this process, one agent after the other, without Ray: the same numbers in `sync`
            mode, for a notebook or a small attack. Nothing is saved on the way.

    Raises:
        ConfigError: ``in_process`` with ``out``, ``resume`` or ``restart``, or in `async` mode.
        UpdateError, ModelError, LabelError, CheckpointError, AllSeedsFailedError: see `Coordinator`.
        ClusterError: Ray cannot run it here, or the run is under way already.
        LostError: A process of the run died for good, or the machine gave out; with ``out`` the run can go on.
        InUseError: Another process on this machine runs in ``out``.
        DetachedError: Interrupted, and the run goes on without this process.
    """
    config = config or AttackConfig()
    if in_process:
        if out is not None or resume or restart:
            raise ConfigError(["in_process=True saves nothing on the way: leave out, resume and restart away."])
        return attack(*fit(update, model), config, watch).reconstruction
    storage = Storage(out, patience=_STORAGE_PATIENCE_SECONDS) if out is not None else None
    with told_what_to_lower(update, model, config), connected(_store_bytes(update, config)) as joined:
        detached = joined and detach and storage is not None
        name = run_name(storage) if storage is not None and detached else f"run-{uuid.uuid4().hex[:12]}"
        coordinator = _find(name) if detached else None
        # Held until the end: Ray makes a lost coordinator again only while what it was made with is in use.
        inputs: list[Any] = []
        if coordinator is not None and not resume:
            raise _under_way(out)
        # Whoever only looks on at a run that goes on without them holds nothing.
        with holding(None if detached else storage):
            if coordinator is None:
                if storage is not None and not (resume or restart):
                    require_no_saved_run(storage)
                how = {"resume": resume, "restart": restart, "joined": joined, "detached": detached}
                coordinator = _begin(update, model, config, name, storage, source, inputs, **how)
            return _attend(coordinator, name if detached else None, storage, watch)


def attend(out: str | Path, watch: Watch | None = None) -> Reconstruction:
    """Look on at the run of this folder or URL until it ends; its result at once if it has ended.

    Raises:
        ClusterError: There is no such run, here or in the storage.
        DetachedError: Interrupted; the run goes on.
    """
    storage = Storage(out)
    with connected(only_join=True) as joined:
        coordinator = _find(run_name(storage)) if joined else None
        if coordinator is None:
            return _from_storage(storage)
        return _attend(coordinator, run_name(storage), storage, watch)


def stop(out: str | Path) -> None:
    """Ask the run of this folder or URL to end at its next round, with what it has then.

    Raises:
        ClusterError: No such run is under way.
    """
    storage = Storage(out)
    with connected(only_join=True) as joined:
        coordinator = _find(run_name(storage)) if joined else None
        if coordinator is None:
            raise ClusterError(f"No run is under way in {out}.")
        ray.get(coordinator.stop.remote())


def require_no_run(out: str | Path) -> None:
    """Refuse a folder or URL whose run is under way, before anything in it is written.

    Raises:
        ClusterError: Its run is under way.
    """
    with connected(only_join=True) as joined:
        if joined and _find(run_name(Storage(out))) is not None:
            raise _under_way(out)


def _under_way(out: str | Path | None) -> ClusterError:
    return ClusterError(f"The run in {out} is under way: look on with `watch`, end it with `stop`, or wait.")


def run_name(storage: Storage) -> str:
    """What a run's actors are called after: the same for whoever names the same folder or URL."""
    return f"run-{hashlib.sha256(storage.url.encode()).hexdigest()[:12]}"


def _begin(
    update: CapturedUpdate,
    model: nn.Module,
    config: AttackConfig,
    name: str,
    storage: Storage | None,
    source: ModelSource | None,
    inputs: list[Any],
    *,
    resume: bool,
    restart: bool,
    joined: bool,
    detached: bool,
) -> Any:
    """Start the coordinator; ``inputs`` is given the reference to what it is made with, where it is not the storage."""
    available: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    # Labels and peeling come before the agents have work, so the coordinator may use what they will use.
    threads = max(1, int(os.cpu_count() or 1) if joined else int(available.get("CPU", 1)))
    if detached and source is not None and storage is not None:
        store_inputs(storage, *fit(update, model))
    else:
        source = None
        inputs.append(put_inputs(update, model))
    resources = allot(config.agents, available, elastic=joined)
    spec = RunSpec(name, config, resources, threads, storage, resume, detached, source, restart)
    # Its process may be ended for want of memory, or with its machine: it goes on after what is saved, or anew.
    options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 8, "max_restarts": _MOST_RESTARTS}
    if detached:
        options |= {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "max_restarts": -1}
        options["resources"] = _beside_the_head()
    sent = cloudpickle.dumps(inputs[0]) if inputs else None  # type: ignore[no-untyped-call]
    give_back_now()  # what it took to make and to send the update
    return CoordinatorActor.options(**options).remote(spec, sent)


def _beside_the_head() -> dict[str, float]:
    """A trace of the resource that only the head has: it outlives spot machines, and without it there is no Ray."""
    available: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return {_HEAD: 0.001} if _HEAD in available else {}


def _find(name: str) -> Any:
    """The coordinator of a run that has not ended, or None."""
    try:
        actor: Any = ray.get_actor(name, NAMESPACE)
    except ValueError:
        return None
    try:
        if not ray.get(actor.ended.remote()):
            return actor
        ray.kill(actor)
    except ActorUnavailableError:
        return actor  # it is being made again
    except RayActorError:
        pass
    return None


def _attend(coordinator: Any, name: str | None, storage: Storage | None, watch: Watch | None) -> Reconstruction:
    """Look on until the end; a run without a name is not detached, and ends with this."""
    found = coordinator
    try:
        while True:
            try:
                return _look_on(found, watch)
            except (RayActorError, OutOfMemoryError) as error:
                if isinstance(error, RayTaskError):
                    raise  # the coordinator is there: this is what it ended with
                failure = lost(error)
            found = _wait_for(coordinator if name is None else name)
            if found is None and name is not None and storage is not None:
                return _from_storage(storage)
            if found is None:
                raise failure
    except KeyboardInterrupt:
        if name is not None:
            raise DetachedError from None
        raise
    finally:
        if name is None:
            ray.kill(coordinator)


def _look_on(coordinator: Any, watch: Watch | None) -> Reconstruction:
    running = coordinator.result.remote()
    while True:
        done, _ = ray.wait([running], timeout=_LOOK_SECONDS)
        if watch is not None:
            status = ray.get(coordinator.status.remote())
            if status is not None:
                watch(status)
        if done:
            found: Reconstruction = ray.get(running)
            return found


def _wait_for(coordinator: Any) -> Any:
    """The coordinator, by its name or its handle, once it is there again; None when it has ended for good."""
    while True:
        try:
            actor: Any = ray.get_actor(coordinator, NAMESPACE) if isinstance(coordinator, str) else coordinator
            ray.get(actor.ended.remote())
            return actor
        except ValueError:
            return None
        except ActorUnavailableError:
            time.sleep(_LOOK_SECONDS)
        except (RayActorError, OutOfMemoryError):
            return None


def _from_storage(storage: Storage) -> Reconstruction:
    result = read_result(storage)
    if result is None:
        raise ClusterError(
            f"No run is under way in {storage.url}, and none has ended there; if it has checkpoints, the command that "
            "began it continues it with resume=true."
        )
    return result


def _store_bytes(update: CapturedUpdate, config: AttackConfig) -> int:
    """For the object store of a Ray of our own: two rounds of candidates, and the consensuses that legs hold on to."""
    batch = 4 * update.image_count * math.prod(update.image_shape)
    return (2 * config.agents.count + MOST_LEGS + 2) * batch

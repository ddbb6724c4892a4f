"""Start or join Ray, run one attack on it, and look on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private.services import find_bootstrap_address
from ray.exceptions import RayActorError, RayTaskError
from torch import nn

from ..capture import CapturedUpdate
from ..coordinator import AttackConfig, Reconstruction, Status
from .coordinator_actor import CoordinatorActor
from .resources import share

_LOOK_SECONDS = 0.5
_OBJECT_STORE_BYTES = 200 * 2**20


class ClusterError(RuntimeError):
    """Ray cannot run the attack, or lost a part of it."""


def reconstruct(
    update: CapturedUpdate,
    model: nn.Module,
    config: AttackConfig | None = None,
    *,
    out: Path | None = None,
    resume: bool = False,
    watch: Callable[[Status], None] | None = None,
) -> Reconstruction:
    """Run the attack: agents and a coordinator as Ray actors, on the cluster that is there or on this machine.

    Joins the Ray that is already initialised, or the one of ``RAY_ADDRESS`` or of ``ray start`` on this machine;
    otherwise starts one here and ends it afterwards.

    Args:
        update: What the server holds.
        model: The server's model.
        config: The attack; the defaults are the preset ``gradinversion``.
        out: Folder for checkpoints and ``metrics.jsonl``; None keeps none.
        resume: Continue from the newest checkpoint in ``out``.
        watch: Called about twice a second with the state of the run.

    Raises:
        UpdateError, LabelError, CheckpointError, AllSeedsFailedError: see `Coordinator`.
        ClusterError: A process of the run died.
    """
    config = config or AttackConfig()
    with _ray():
        available: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        resources = share(config.agents, available)
        # Labels and peeling come before the agents have work, so the coordinator may use what they will use.
        threads = max(1, int(available.get("CPU", 1)))
        coordinator = CoordinatorActor.options(num_cpus=0, max_concurrency=4).remote(
            update, model, config, resources, threads, str(out.resolve()) if out else None, resume
        )
        try:
            running = coordinator.run.remote()
            while True:
                done, _ = ray.wait([running], timeout=_LOOK_SECONDS)
                if watch is not None:
                    watch(ray.get(coordinator.status.remote()))
                if done:
                    result: Reconstruction = ray.get(running)
                    return result
        except RayTaskError as error:
            raise _cause(error) from None
        except RayActorError as error:
            what = str(error).splitlines()[0]
            raise ClusterError(
                f"A process of the run died ({what}); resume=true continues from the last checkpoint."
            ) from None


def _cause(error: RayTaskError) -> Exception:
    """The error as it was raised in the actor, however many actors it went through."""
    cause: BaseException = error
    while isinstance(cause, RayTaskError) and isinstance(cause.cause, Exception):
        cause = cause.cause
    return cause if isinstance(cause, Exception) else error


@contextmanager
def _ray() -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    # Without it Ray 2.x warns in every process that a future release leaves CUDA_VISIBLE_DEVICES alone.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    local = quiet | {"address": "local", "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    address = _cluster_address()
    try:
        ray.init(**(local if address is None else quiet | {"address": address}))
    except ConnectionError:
        ray.init(**local)  # the address was that of a cluster that is gone
    try:
        yield
    finally:
        ray.shutdown()


def _cluster_address() -> str | None:
    """``RAY_ADDRESS``, or where ``ray start`` on this machine said the cluster is; None for a cluster of our own."""
    address = os.environ.get("RAY_ADDRESS") or find_bootstrap_address(None)
    return None if address in (None, "local") else str(address)

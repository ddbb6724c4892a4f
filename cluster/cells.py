"""Jobs side by side: each a Ray task in a process of its own, so that one that fails leaves the others alone."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..refusal import Refusal

_LOOK_SECONDS = 0.5
# A process that was lost, with its node or for want of memory, is begun again so often.
_MOST_RETRIES = 1

Tell = Callable[[Any], None]
Look = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """Work for one process. Function and arguments must be picklable by reference."""

    name: str
    """Unique among the jobs."""
    work: Callable[..., Any]
    """Called as ``work(*arguments, tell)``; ``tell`` shows the newest state to whoever looks on."""
    arguments: tuple[Any, ...]
    about: Any = None
    """What the work is about, for whoever made the job: it comes back with the job's end."""
    gpus: float = 0.0
    """That the work itself computes on; what it starts by ``reconstruct`` has its own."""


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    name: str
    value: Any = None
    problem: str | None = None
    """Why there is no value, in one sentence."""
    details: str = ""
    """The traceback of an error that nobody expected."""
    about: Any = None
    """As in the job."""


def run_side_by_side(jobs: Iterable[Job], at_once: int, look: Look | None = None) -> Iterator[Ended]:
    """Run jobs as Ray tasks, at most ``at_once`` at a time, on the Ray that is connected.

    Args:
        jobs: Taken one by one, whenever there is room: whoever makes them may decide late.
        at_once: At least 1.
        look: Called about twice a second with the newest state of each running job, by name.

    Yields:
        Each job's end, as it comes. When the caller stops iterating, running jobs are ended with all that they began.
    """
    board = _board()
    waiting = iter(jobs)
    running: dict[Any, Job] = {}
    more = True
    try:
        while True:
            while more and len(running) < at_once:
                job = next(waiting, None)
                more = job is not None
                if job is not None:
                    running[_task(job).remote(job, board)] = job
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK_SECONDS)
            if look is not None:
                look(_states(board, running.values()))
            for reference in done:
                job = running.pop(reference)
                board.forget.remote(job.name)
                yield replace(_end(job, reference), about=job.about)
    finally:
        for reference in running:
            with contextlib.suppress(RayError):
                ray.cancel(reference, force=True)
        ray.kill(board)


def available_resources() -> dict[str, float]:
    """All that the connected Ray counts (``CPU``, ``GPU``), used or not; nothing where none is connected."""
    found: dict[str, float] = ray.cluster_resources() if ray.is_initialized() else {}  # type: ignore[no-untyped-call]
    return found


def _board() -> Any:
    """Beside whoever looks on: a node that goes takes with it only what runs there."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    # A byte of memory: Ray places an actor that asks for nothing anywhere, whatever its strategy.
    return _Board.options(num_cpus=0, memory=1, max_restarts=-1, scheduling_strategy=here).remote()


def _states(board: Any, jobs: Iterable[Job]) -> dict[str, Any]:
    """The newest state of each job; None for one that told none."""
    told: dict[str, Any] = {}
    with contextlib.suppress(RayError):  # a board that was lost is made anew, and told again
        told = ray.get(board.read.remote())
    return {job.name: told.get(job.name) for job in jobs}


def _task(job: Job) -> Any:
    return _work.options(num_cpus=0, num_gpus=job.gpus, max_retries=_MOST_RETRIES, name=job.name)


def _end(job: Job, reference: Any) -> Ended:
    try:
        end: Ended = ray.get(reference)
        return end
    except OutOfMemoryError:
        return Ended(job.name, problem="The machine ran out of memory: give smaller batches, or fewer jobs at once.")
    except WorkerCrashedError:
        return Ended(job.name, problem="Its process was lost, and again when it was begun anew.")
    except RayTaskError as error:
        return Ended(job.name, problem=_sentence(error.cause or error), details=str(error))
    except RayError as error:
        return Ended(job.name, problem=f"Its process was lost ({_sentence(error)})")


def _sentence(error: BaseException) -> str:
    """What a user can mend is in sentences already; of other errors the first line, with their kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and isinstance(error, Refusal):
        return " ".join(lines)
    return f"{type(error).__name__}: {lines[0]}" if lines else f"{type(error).__name__}."


def _run(job: Job, board: Any) -> Ended:
    def tell(state: Any) -> None:
        board.tell.remote(job.name, state)

    try:
        return Ended(job.name, job.work(*job.arguments, tell))
    # A job may run code of the user's own model, and whatever that raises ends this job alone.
    except (Exception, SystemExit) as error:
        return Ended(job.name, problem=_sentence(error), details=traceback.format_exc())


class _States:
    """The newest state of each job."""

    def __init__(self) -> None:
        self._states: dict[str, Any] = {}

    def tell(self, name: str, state: Any) -> None:
        self._states[name] = state

    def forget(self, name: str) -> None:
        self._states.pop(name, None)

    def read(self) -> dict[str, Any]:
        return self._states


# Ray adds .remote and .options at run time, which its types only tell for decorated names.
_work: Any = ray.remote(_run)
_Board: Any = ray.remote(_States)

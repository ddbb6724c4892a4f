"""What Ray says when it fails, as one sentence that a person can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import (
    AuthenticationError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from ..refusal import Refusal

_LONGEST_REASON = 300


class ClusterError(Refusal, RuntimeError):
    """Ray cannot run the attack."""


class LostError(ClusterError):
    """The machine or the cluster gave out under a run; what the run has saved is not lost, and it can go on."""


class MemoryLostError(LostError):
    """As `LostError`, for want of memory."""


# The first that fits; kinds of errors stand before what they are kinds of.
_SENTENCES: tuple[tuple[type[RayError], str], ...] = (
    (OutOfMemoryError, "The machine ran out of memory, and Ray ended a process of the run ({reason})."),
    (
        ObjectStoreFullError,
        "Ray's object store is full ({reason}): give fewer agents or a smaller batch, or a machine with more memory.",
    ),
    (OutOfDiskError, "The disk that Ray keeps its files on is full: make room, or name another with RAY_TMPDIR."),
    (AuthenticationError, "The cluster asks for another token than the one here: RAY_AUTH_TOKEN_PATH names its file."),
    (NodeDiedError, "A machine of the run was lost ({reason})."),
    (LocalRayletDiedError, "Ray's own process on this machine was ended from outside."),
    (ObjectLostError, "What a process of the run held was lost with it ({reason})."),
    (WorkerCrashedError, "A process of the run was ended from outside, or crashed."),
    (
        RayActorError,
        "A process of the run was ended from outside or crashed, and so was each that took its place; where the kernel "
        "ended it for want of memory, give fewer agents or a smaller batch.",
    ),
    (RayError, "Ray failed ({reason})."),
)


def cause_of(error: Exception) -> Exception:
    """The error as it was raised in the actor, however many actors it went through."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    return error


def lost(error: RayError) -> LostError:
    """The sentence for an error of Ray's own."""
    sentence = next(sentence for kind, sentence in _SENTENCES if isinstance(error, kind))
    kind = MemoryLostError if isinstance(error, OutOfMemoryError) else LostError
    return kind(sentence.format(reason=first_line(error)))


def first_line(error: BaseException) -> str:
    """What an error says first, without its end; of Ray's, who quotes whole logs, the part that a person can use."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".:")[:_LONGEST_REASON]


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """Whatever Ray raises meanwhile is raised as what caused it in an actor, or as a `LostError`."""
    try:
        yield
    except RayError as error:
        cause = cause_of(error)
        raise (lost(cause) if isinstance(cause, RayError) else cause) from None

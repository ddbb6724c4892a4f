"""What an agent raised is found again behind what Ray wraps around it."""

from __future__ import annotations

import pytest
from gradinversion.cluster.failures import LostError, MemoryLostError, cause_of, in_one_sentence
from gradinversion.refusal import ConfigError
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    OwnerDiedError,
    RayError,
    RaySystemError,
    RayTaskError,
)


def test_the_cause_is_found_behind_several_actors() -> None:
    error = RuntimeError("the first")
    assert cause_of(RayTaskError("f", "", error)) is error
    assert cause_of(RayTaskError("g", "", RayTaskError("f", "", error))) is error


def test_what_ray_itself_raised_is_its_own_cause() -> None:
    gone = ActorUnavailableError("the process is gone", b"0" * 16)
    assert cause_of(gone) is gone


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (
            OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory on the node ..."),
            "out of memory",
        ),
        (ObjectStoreFullError("full"), "fewer agents"),
        (OutOfDiskError("full"), "RAY_TMPDIR"),
        (ActorDiedError(), "ended from outside or crashed"),
        (NodeDiedError("node 1"), r"\(node 1\)"),
        (OwnerDiedError("ab" * 28, None, ""), "was lost with it"),
        (RaySystemError("broken"), "Ray failed"),
    ],
)
def test_what_ray_raises_is_one_sentence(error: RayError, part: str) -> None:
    with pytest.raises(LostError, match=part) as found, in_one_sentence():
        raise error
    assert len(str(found.value).splitlines()) == 1
    assert isinstance(found.value, MemoryLostError) == isinstance(error, OutOfMemoryError)


def test_what_an_actor_raised_is_raised_as_it_was() -> None:
    for cause in (ConfigError(["agents.count=0"]), AssertionError("a fault of the program")):
        with pytest.raises(type(cause)) as found, in_one_sentence():
            raise RayTaskError("f", "a long traceback", cause)
        assert found.value is cause
    with pytest.raises(LostError, match="out of memory"), in_one_sentence():
        raise RayTaskError("f", "", OutOfMemoryError("low"))

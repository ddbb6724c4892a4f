"""What an agent raised is found again behind what Ray wraps around it."""

from __future__ import annotations

from gradinversion.cluster.failures import cause_of
from ray.exceptions import ActorUnavailableError, RayTaskError


def test_the_cause_is_found_behind_several_actors() -> None:
    error = RuntimeError("the first")
    assert cause_of(RayTaskError("f", "", error)) is error
    assert cause_of(RayTaskError("g", "", RayTaskError("f", "", error))) is error


def test_what_ray_itself_raised_is_its_own_cause() -> None:
    gone = ActorUnavailableError("the process is gone", b"0" * 16)
    assert cause_of(gone) is gone

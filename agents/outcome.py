"""How a seed, or a whole run, ended. Numerical failure is data here, never an exception."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The value is the message a person reads."""

    RUNNING = "still optimising"
    FINISHED = "all steps done"
    NOT_FINITE = "the loss or the candidate stopped being finite"
    DIVERGED = "the loss rose far above its best value and stayed there"
    DROPPED = "dropped: it failed more often than agents.restarts allows"
    INTERRUPTED = "interrupted: the state is saved, resume=true continues"
    ALL_SEEDS_FAILED = "every seed failed, so there is no reconstruction"

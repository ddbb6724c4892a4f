"""The attack on Ray: actors, resources, launch. The only folder that imports ray."""

from .cells import Ended, Job, available_resources, run_side_by_side
from .connection import connected
from .display import Display
from .failures import ClusterError, LostError
from .freed_memory import give_back_what_is_freed
from .launch import DetachedError, attend, reconstruct, require_no_run, stop
from .pulse import Activity, clock_time
from .resources import Allotment, allot
from .view import ProgressView

__all__ = [
    "Activity",
    "Allotment",
    "ClusterError",
    "DetachedError",
    "Display",
    "Ended",
    "Job",
    "LostError",
    "ProgressView",
    "allot",
    "attend",
    "available_resources",
    "clock_time",
    "connected",
    "give_back_what_is_freed",
    "reconstruct",
    "require_no_run",
    "run_side_by_side",
    "stop",
]

"""The attack on Ray: actors, resources, launch. The only folder that imports ray."""

from .cells import Ended, Job, available_resources, run_side_by_side
from .connection import ClusterError, connected
from .launch import DetachedError, attend, reconstruct, require_no_run, stop
from .resources import Share, share
from .view import ProgressView

__all__ = [
    "ClusterError",
    "DetachedError",
    "Ended",
    "Job",
    "ProgressView",
    "Share",
    "attend",
    "available_resources",
    "connected",
    "reconstruct",
    "require_no_run",
    "run_side_by_side",
    "share",
    "stop",
]

"""The attack on Ray: actors, resources, launch. The only folder that imports ray."""

from .connection import ClusterError
from .launch import DetachedError, attend, reconstruct, require_no_run, stop
from .resources import Share, share
from .view import ProgressView

__all__ = [
    "ClusterError",
    "DetachedError",
    "ProgressView",
    "Share",
    "attend",
    "reconstruct",
    "require_no_run",
    "share",
    "stop",
]

"""The attack on Ray: actors, resources, launch. The only folder that imports ray."""

from .launch import ClusterError, DetachedError, attend, reconstruct, stop
from .resources import Share, share
from .view import ProgressView

__all__ = ["ClusterError", "DetachedError", "ProgressView", "Share", "attend", "reconstruct", "share", "stop"]

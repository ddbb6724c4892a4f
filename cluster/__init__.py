"""The attack on Ray: actors, resources, launch. The only folder that imports ray."""

from .launch import ClusterError, reconstruct
from .resources import Share, share
from .view import ProgressView

__all__ = ["ClusterError", "ProgressView", "Share", "reconstruct", "share"]

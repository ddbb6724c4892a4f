"""Nodes that will be taken away soon, as Ray knows them (``ray drain-node``, a cloud's notice, a pod's end)."""

from __future__ import annotations

import ray


def draining_nodes() -> frozenset[str]:
    """Ids (hex) of the nodes that are being drained."""
    # Ray has no public way to ask; its own training library asks like this.
    return frozenset(ray._private.state.state.get_draining_nodes())

"""Captured updates from the frameworks that real clients train in; each module needs only the framework it names."""

from .state_dicts import capture_state_dicts, infer_batch_norm

__all__ = ["capture_state_dicts", "infer_batch_norm"]

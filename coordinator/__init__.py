"""Rounds, membership, checkpoints and the final choice of images; knows nothing of Ray."""

from .checkpoints import CheckpointError, CheckpointStore, read_tensors, write_tensors
from .config import AttackConfig, CoordinatorConfig, Mode
from .coordinator import AllSeedsFailedError, Coordinator
from .group import AgentGroup
from .reconstruction import Reconstruction
from .selection import Choice, choose
from .status import Status

__all__ = [
    "AgentGroup",
    "AllSeedsFailedError",
    "AttackConfig",
    "CheckpointError",
    "CheckpointStore",
    "Choice",
    "Coordinator",
    "CoordinatorConfig",
    "Mode",
    "Reconstruction",
    "Status",
    "choose",
    "read_tensors",
    "write_tensors",
]

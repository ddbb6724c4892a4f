"""Rounds, membership, checkpoints and the final choice of images; knows nothing of Ray."""

from ..storage.folders import Storage, StorageError
from ..storage.tensor_file import CheckpointError, StateFile, read_tensors, write_state, write_tensors
from .checkpoints import CheckpointStore, FencedError, state_name
from .config import AttackConfig, CoordinatorConfig, Mode, flatten
from .consensus import form_consensus, join_parts, parts_by_label
from .coordinator import Coordinator
from .event_log import EventLog, log_as_json
from .events import Event, EventKind, Level
from .group import AgentGroup, CandidatesLostError, Listener
from .orders import MOST_LEGS, Itinerary, Leg, Order, Origin
from .parts import Part
from .permutations import match_images, permute
from .phase import Phase, Wait
from .reconstruction import Reconstruction, Source
from .result_file import read_result
from .rounds import AllSeedsFailedError
from .selection import Choice, choose
from .status import SeedStatus, Status

__all__ = [
    "MOST_LEGS",
    "AgentGroup",
    "AllSeedsFailedError",
    "AttackConfig",
    "CandidatesLostError",
    "CheckpointError",
    "CheckpointStore",
    "Choice",
    "Coordinator",
    "CoordinatorConfig",
    "Event",
    "EventKind",
    "EventLog",
    "FencedError",
    "Itinerary",
    "Leg",
    "Level",
    "Listener",
    "Mode",
    "Order",
    "Origin",
    "Part",
    "Phase",
    "Reconstruction",
    "SeedStatus",
    "Source",
    "StateFile",
    "Status",
    "Storage",
    "StorageError",
    "Wait",
    "choose",
    "flatten",
    "form_consensus",
    "join_parts",
    "log_as_json",
    "match_images",
    "parts_by_label",
    "permute",
    "read_result",
    "read_tensors",
    "state_name",
    "write_state",
    "write_tensors",
]

"""GradInversion as a distributed multi-agent optimisation: what an averaged gradient reveals of private images.

``capture_gradient`` makes what a client would send, ``reconstruct`` attacks it, ``evaluate`` says what leaked, and
``write_report`` writes the page; each name is loaded when it is first used.

Read the folders in the order of the data: ``capture`` (what the server holds) -> ``priors`` and ``agents``
(one seed optimises one candidate batch) -> ``registration`` (the seeds become one consensus) -> ``coordinator``
(rounds and checkpoints) -> ``cluster`` (Ray) -> ``audit`` (what leaked).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from .agents import AgentsConfig, ObjectiveConfig
    from .agents.own_priors import PriorFunction
    from .audit.evaluate import evaluate
    from .audit.report import write_report
    from .audit.results import AuditReport
    from .capture import (
        CapturedUpdate,
        ClientConfig,
        PrivateBatch,
        RecoveredLabels,
        capture_gradient,
        capture_weight_delta,
        load_batch,
        load_model,
        recover_labels,
        train_locally,
    )
    from .capture.client.own_defence import DefenceFunction
    from .capture.labels.final_layer import FinalLayer
    from .capture.labels.own_rule import LabelRule
    from .cluster import reconstruct
    from .coordinator import AttackConfig, CoordinatorConfig, Reconstruction
    from .peeling import PeelingConfig
    from .peeling.cut.own_decoder import DecoderFactory
    from .plugins import PluginError
    from .refusal import ConfigError, Refusal
    from .registration.config import RegistrationConfig
    from .registration.own_method import WarpFinder
    from .registration.register import register

# Where each public name is: to import the package alone takes no time.
_PLACES = {
    "agents": ("AgentsConfig", "ObjectiveConfig"),
    "agents.own_priors": ("PriorFunction",),
    "audit": ("AuditReport", "evaluate", "write_report"),
    "capture": (
        *("CapturedUpdate", "ClientConfig", "PrivateBatch", "capture_gradient", "capture_weight_delta", "load_batch"),
        *("RecoveredLabels", "load_model", "recover_labels", "train_locally"),
    ),
    "capture.client.own_defence": ("DefenceFunction",),
    "capture.labels.final_layer": ("FinalLayer",),
    "capture.labels.own_rule": ("LabelRule",),
    "cluster": ("reconstruct",),
    "coordinator": ("AttackConfig", "CoordinatorConfig", "Reconstruction"),
    "peeling": ("PeelingConfig",),
    "peeling.cut.own_decoder": ("DecoderFactory",),
    "plugins": ("PluginError",),
    "refusal": ("ConfigError", "Refusal"),
    "registration": ("RegistrationConfig", "register"),
    "registration.own_method": ("WarpFinder",),
}
_HOME = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [
    "AgentsConfig",
    "AttackConfig",
    "AuditReport",
    "CapturedUpdate",
    "ClientConfig",
    "ConfigError",
    "CoordinatorConfig",
    "DecoderFactory",
    "DefenceFunction",
    "FinalLayer",
    "LabelRule",
    "ObjectiveConfig",
    "PeelingConfig",
    "PluginError",
    "PriorFunction",
    "PrivateBatch",
    "Reconstruction",
    "RecoveredLabels",
    "Refusal",
    "RegistrationConfig",
    "WarpFinder",
    "capture_gradient",
    "capture_weight_delta",
    "evaluate",
    "load_batch",
    "load_model",
    "reconstruct",
    "recover_labels",
    "register",
    "train_locally",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def _version() -> str:
    """Of the installed distribution, which had it from git's tags; of a folder that is not installed, none is known."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""What the server holds: the captured update and its file, and the simulated client that makes one."""

from .batch_norm import (
    BatchNormStatistics,
    RunningStatistics,
    batch_norm_layers,
    batch_norm_targets,
    client_mode,
    recover_batch_statistics,
)
from .client import ClientConfig, ClientError, PrivateBatch, capture_gradient, simulate_client
from .defences import apply_defence
from .final_layer import LabelError
from .images import ImageError, load_images
from .labels import ClassCount, RecoveredLabels, recover_labels
from .models import ModelError, ModelSource, load_model
from .update import (
    IMAGENET,
    BatchNormMode,
    CapturedUpdate,
    Normalisation,
    UpdateError,
    UpdateKind,
    weight_hash,
)

__all__ = [
    "IMAGENET",
    "BatchNormMode",
    "BatchNormStatistics",
    "CapturedUpdate",
    "ClassCount",
    "ClientConfig",
    "ClientError",
    "ImageError",
    "LabelError",
    "ModelError",
    "ModelSource",
    "Normalisation",
    "PrivateBatch",
    "RecoveredLabels",
    "RunningStatistics",
    "UpdateError",
    "UpdateKind",
    "apply_defence",
    "batch_norm_layers",
    "batch_norm_targets",
    "capture_gradient",
    "client_mode",
    "load_images",
    "load_model",
    "recover_batch_statistics",
    "recover_labels",
    "simulate_client",
    "weight_hash",
]

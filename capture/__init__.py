"""What the server holds: the captured update and its file, and the simulated client that makes one."""

from .batch_norm import batch_norm_layers, client_mode
from .client.config import ClientConfig, ClientError
from .client.defending import apply_defence
from .client.gradient import capture_gradient
from .client.images import ImageError, count_images, load_images
from .client.local_training import train_locally
from .client.private_batch import PrivateBatch, load_batch
from .client.private_config import PrivateConfig
from .client.simulation import send_update, simulate_client
from .defences import Defence, DefenceError, defence_words
from .errors import UpdateError
from .facts import (
    BatchNormMode,
    ClientFacts,
    Fact,
    LocalFacts,
    Penalty,
    Provenance,
    Reduction,
    Sampling,
    assumed,
    read,
    told,
)
from .hashing import weight_hash
from .labels.final_layer import LabelError, NoFinalGradientError, find_final_layer
from .labels.learning_rate import estimate_learning_rate
from .labels.one_look import OneLook
from .labels.recovered import ClassCount, RecoveredLabels
from .labels.recovery import recover_labels
from .labels.softmax import is_softmax
from .labels.unmixing import Unmixed, unmix
from .local_training import LocalTraining
from .losses import ClientLoss, is_known
from .models import ModelError, ModelSource, load_model
from .normalisation import IMAGENET, Normalisation
from .pseudo_gradient import as_gradient, as_mean, gradient_shares, is_one_step, mean_gradients
from .rounding import sent_type
from .sent_statistics import (
    BatchNormStatistics,
    RunningStatistics,
    batch_norm_targets,
    impossible_layers,
    recover_batch_statistics,
    step_shares,
)
from .stateless import call_with
from .update import CapturedUpdate
from .update_kind import UpdateKind
from .weight_delta import capture_weight_delta

__all__ = [
    "IMAGENET",
    "BatchNormMode",
    "BatchNormStatistics",
    "CapturedUpdate",
    "ClassCount",
    "ClientConfig",
    "ClientError",
    "ClientFacts",
    "ClientLoss",
    "Defence",
    "DefenceError",
    "Fact",
    "ImageError",
    "LabelError",
    "LocalFacts",
    "LocalTraining",
    "ModelError",
    "ModelSource",
    "NoFinalGradientError",
    "Normalisation",
    "OneLook",
    "Penalty",
    "PrivateBatch",
    "PrivateConfig",
    "Provenance",
    "RecoveredLabels",
    "Reduction",
    "RunningStatistics",
    "Sampling",
    "Unmixed",
    "UpdateError",
    "UpdateKind",
    "apply_defence",
    "as_gradient",
    "as_mean",
    "assumed",
    "batch_norm_layers",
    "batch_norm_targets",
    "call_with",
    "capture_gradient",
    "capture_weight_delta",
    "client_mode",
    "count_images",
    "defence_words",
    "estimate_learning_rate",
    "find_final_layer",
    "gradient_shares",
    "impossible_layers",
    "is_known",
    "is_one_step",
    "is_softmax",
    "load_batch",
    "load_images",
    "load_model",
    "mean_gradients",
    "read",
    "recover_batch_statistics",
    "recover_labels",
    "send_update",
    "sent_type",
    "simulate_client",
    "step_shares",
    "told",
    "train_locally",
    "unmix",
    "weight_hash",
]

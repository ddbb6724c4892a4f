"""What leaked: metrics, matching, verdicts and the report. Only this folder may look at the private images."""

from .config import AuditConfig
from .controls import (
    Attack,
    Control,
    ControlError,
    Send,
    like_the_client,
    run_controls,
    simulated,
    without_gradient,
)
from .evaluate import evaluate
from .exposure import Exposure, measure_exposure
from .files import ReportError
from .identification import Embedding, Gallery, make_embedding
from .initialisation import WeightState, judge_weights
from .judging import embedding_for, judge
from .label_scores import LabelScores
from .lpips import Lpips, LpipsError, load_lpips
from .matching import Matching, assign, match
from .metrics import constant_images, fft2d, label_accuracy, psnr, ssim
from .pool import Pool, load_pool
from .report import write_report
from .results import AgentResult, AuditReport, ControlResult, ControlScore, ImageResult
from .truth import measure_truth_gap
from .verdict import Leak, Verdict

__all__ = [
    "AgentResult",
    "Attack",
    "AuditConfig",
    "AuditReport",
    "Control",
    "ControlError",
    "ControlResult",
    "ControlScore",
    "Embedding",
    "Exposure",
    "Gallery",
    "ImageResult",
    "LabelScores",
    "Leak",
    "Lpips",
    "LpipsError",
    "Matching",
    "Pool",
    "ReportError",
    "Send",
    "Verdict",
    "WeightState",
    "assign",
    "constant_images",
    "embedding_for",
    "evaluate",
    "fft2d",
    "judge",
    "judge_weights",
    "label_accuracy",
    "like_the_client",
    "load_lpips",
    "load_pool",
    "make_embedding",
    "match",
    "measure_exposure",
    "measure_truth_gap",
    "psnr",
    "run_controls",
    "simulated",
    "ssim",
    "without_gradient",
    "write_report",
]

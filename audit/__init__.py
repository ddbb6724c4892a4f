"""What leaked: metrics, matching, verdicts and the report. Only this folder may look at the private images."""

from .case import Case
from .config import AuditConfig
from .controls import Attack, Control, ControlError, run_controls, without_gradient
from .evaluate import evaluate
from .exposure import Exposure, measure_exposure
from .files import ReportError
from .identification import Embedding, Gallery, make_embedding
from .image_result import ControlScore, ImageResult
from .initialisation import WeightState, weight_state
from .judging import judge
from .label_scores import LabelScores
from .lpips import Lpips, LpipsError, load_lpips
from .matching import Matching, assign, match
from .metrics import constant_images, fft2d, label_accuracy, psnr, ssim
from .pipeline import Assessment, Runner, Stage, assess, attack_and_assess
from .pool import Pool, load_pool
from .report import write_report
from .results import AgentResult, AuditReport, ControlResult
from .sending import Send, like_the_client, simulated
from .truth import measure_truth_gap
from .verdict import Leak, Verdict

__all__ = [
    "AgentResult",
    "Assessment",
    "Attack",
    "AuditConfig",
    "AuditReport",
    "Case",
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
    "Runner",
    "Send",
    "Stage",
    "Verdict",
    "WeightState",
    "assess",
    "assign",
    "attack_and_assess",
    "constant_images",
    "evaluate",
    "fft2d",
    "judge",
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
    "weight_state",
    "without_gradient",
    "write_report",
]

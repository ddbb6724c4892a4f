"""What leaked: metrics, matching, verdicts and the report. Only this folder may look at the private images."""

from .config import AuditConfig
from .evaluate import evaluate
from .files import ReportError
from .lpips import Lpips, LpipsError, load_lpips
from .matching import Matching, assign, match
from .metrics import constant_images, fft2d, label_accuracy, psnr, ssim
from .report import write_report
from .results import AgentResult, AuditReport, ImageResult
from .verdict import Leak, Verdict

__all__ = [
    "AgentResult",
    "AuditConfig",
    "AuditReport",
    "ImageResult",
    "Leak",
    "Lpips",
    "LpipsError",
    "Matching",
    "ReportError",
    "Verdict",
    "assign",
    "constant_images",
    "evaluate",
    "fft2d",
    "label_accuracy",
    "load_lpips",
    "match",
    "psnr",
    "ssim",
    "write_report",
]

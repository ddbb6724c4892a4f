"""What a natural batch looks like: each prior is one equation, literally as in the paper and in a scale-free form."""

from .batch_norm import InputStatistics, Statistics, batch_norm_distance, relative_batch_norm_distance
from .group import group_distance, relative_group_distance
from .l2 import l2_norm, mean_square
from .total_variation import anisotropic_total_variation, colour_total_variation, total_variation

__all__ = [
    "InputStatistics",
    "Statistics",
    "anisotropic_total_variation",
    "batch_norm_distance",
    "colour_total_variation",
    "group_distance",
    "l2_norm",
    "mean_square",
    "relative_batch_norm_distance",
    "relative_group_distance",
    "total_variation",
]

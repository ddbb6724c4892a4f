"""The learning rate over the steps."""

from __future__ import annotations

import math


def learning_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up to ``peak``, then a half cosine down to zero at ``steps`` (Yin et al. 2021, section 4.1).

    Args:
        step: The step about to be made, from 0.
        steps: All steps of the run.
        warmup: Steps of the rise; at most a quarter of the run is used for it.
        peak: In normalised pixels.
    """
    warmup = min(warmup, steps // 4)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

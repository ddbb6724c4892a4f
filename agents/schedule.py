"""The learning rate over the steps."""

from __future__ import annotations

import math

# Steps of Adam before which few units of a network's ReLUs are on the right side, whatever the length of the run.
_LEAST_DESCENT = 250
# Gauss-Newton steps below which it is not worth the try.
_LEAST_FINISH = 100


def learning_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up to ``peak``, then a half cosine down to zero at ``steps`` (Yin et al. 2021, section 4.1).

    Args:
        step: The step about to be made, from 0.
        steps: All steps of the descent.
        warmup: Steps of the rise; at most a quarter of the run is used for it.
        peak: In normalised pixels.
    """
    warmup = min(warmup, steps // 4)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def descent_steps(iterations: int, finish: float) -> int:
    """How many of the steps of a run are made before it is finished by Gauss-Newton steps.

    Args:
        iterations: All steps of the run.
        finish: The share that is asked for the end, in [0, 1); a run of less than 350 steps has nothing of it.
    """
    descent = max(_LEAST_DESCENT, round((1 - finish) * iterations))
    return descent if finish > 0 and iterations - descent >= _LEAST_FINISH else iterations

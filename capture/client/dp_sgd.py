"""DP-SGD in the simulated client: clipped per-image gradients, noise, and the privacy that they buy."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

Gradients = dict[str, Tensor]


def noisy_mean(
    per_image: Iterable[Mapping[str, Tensor]], clip: float, noise_multiplier: float, generator: torch.Generator | None
) -> Gradients:
    """One step of DP-SGD (Abadi et al., CCS 2016, algorithm 1).

    ``(1/B) (sum_i g_i min(1, C / ||g_i||_2) + N(0, (z C)^2))`` with the norm of one image's gradient taken over all
    parameters together. Images are summed one by one, so that one gradient is held at a time.

    Args:
        per_image: The gradient of each image's own loss, by parameter name; at least one.
        clip: C, above 0.
        noise_multiplier: z, at least 0; 0 clips without noise, which gives no differential privacy.
        generator: Source of the noise, on the CPU.
    """
    total: Gradients = {}
    count = 0
    for gradients in per_image:
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        scale = min(1.0, clip / norm) if norm > 0 else 1.0
        for name, g in gradients.items():
            total[name] = total[name] + scale * g if name in total else scale * g
        count += 1
    deviation = noise_multiplier * clip
    return {
        name: (g + deviation * torch.randn(g.shape, generator=generator, dtype=g.dtype).to(g.device)) / count
        for name, g in total.items()
    }


def spent_privacy(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> str:
    """What a training of so many such steps gives, in words: epsilon from Opacus's accountant.

    Renyi accounting of the Poisson-subsampled Gaussian mechanism (Mironov et al. 2019). It is that of the client's
    whole training, not of the one step that is attacked, and holds only if the client samples its batches so.

    Args:
        noise_multiplier: z.
        sample_rate: Chance of each image to be in a step, in (0, 1].
        steps: Of the whole training.
        delta: In (0, 1).
    """
    terms = f"at delta {delta:g} after {steps:,} steps at sample rate {sample_rate:g}"
    if noise_multiplier == 0:
        return f"epsilon is infinite {terms}: clipping without noise gives no differential privacy"
    try:
        # Imported here: an optional package, and slow to load.
        accountants = importlib.import_module("opacus.accountants")
    except ImportError:
        return f"epsilon {terms} is not known: it needs pip install 'gradinversion[opacus]'"
    epsilon = _epsilon(accountants.RDPAccountant, noise_multiplier, sample_rate, steps, delta)
    return f"epsilon {epsilon:.3g} {terms}, by Opacus's Renyi accountant"


@cache
def _epsilon(make: Callable[[], Any], noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    import warnings

    accountant = make()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    with warnings.catch_warnings():
        # Opacus warns where the best order lies at the end of its list; the bound holds there too, only less tightly.
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta=delta))

"""What a client may do to its gradient before sending it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Gradients = dict[str, Tensor]

# These need the images and the model, so the client applies them while it computes its gradient.
FROM_IMAGES = ("dp_sgd", "soteria")


class DefenceError(ValueError):
    """A defence that does not exist, or a strength that it cannot have."""


def apply_defence(
    gradients: Mapping[str, Tensor], name: str, strength: float, generator: torch.Generator | None = None
) -> Gradients:
    """The gradient after the defence, new tensors under the same names; the given ones are left as they are.

    - ``none``: a copy.
    - ``noise``: Gaussian, sigma = strength x the 95th percentile of |g| over the whole update.
    - ``clip``: the whole update scaled so that its L2 norm is at most strength (Abadi et al. 2016, without the noise).
    - ``prune``: in each tensor the share ``strength`` of entries of smallest magnitude set to zero.
    - ``quantise``: each tensor rounded to 2^strength evenly spaced values between its minimum and its maximum.

    ``dp_sgd`` and ``soteria`` change the gradient while it is computed: ``simulate_client`` applies them.

    Batch-norm statistics that a client shares are not touched: a defence here covers the gradient only.

    Args:
        gradients: By parameter name.
        name: One of the names above.
        strength: See above; ignored bits of it are an error, never silently dropped.
        generator: Source of the noise, on the CPU; the same state gives the same noise.

    Raises:
        DefenceError: An unknown name or a strength outside its range, in one sentence.
    """
    problem = defence_problem(name, strength)
    if problem:
        raise DefenceError(problem)
    if name in FROM_IMAGES:
        raise DefenceError(
            f"the defence {name!r} needs the images, not only their gradient: simulate_client applies it"
        )
    copies = {key: value.detach().clone() for key, value in gradients.items()}
    return _DEFENCES[name](copies, strength, generator)


def defence_problem(name: str, strength: float) -> str | None:
    """What is wrong with this defence, in one sentence; None when nothing is."""
    if name not in (*_DEFENCES, *FROM_IMAGES):
        return f"the defence is {name!r}; use one of {', '.join((*_DEFENCES, *FROM_IMAGES))}"
    allowed = {
        "none": (strength == 0, "0, for there is nothing to be strong"),
        "noise": (math.isfinite(strength) and strength > 0, "a number above 0 (a usual range is 0.01 to 1)"),
        "clip": (math.isfinite(strength) and strength > 0, "a number above 0, the largest L2 norm"),
        "prune": (0 < strength < 1, "a share above 0 and below 1, such as 0.9"),
        "quantise": (strength in range(1, 17), "a whole number of bits from 1 to 16"),
        "dp_sgd": (math.isfinite(strength) and strength >= 0, "the noise multiplier, a number of at least 0"),
        "soteria": (0 < strength < 1, "a share of the features above 0 and below 1, such as 0.1"),
    }
    fits, meaning = allowed[name]
    return None if fits else f"the strength of the defence {name!r} is {strength:g}; it must be {meaning}"


def _none(gradients: Gradients, strength: float, generator: torch.Generator | None) -> Gradients:
    return gradients


def _noise(gradients: Gradients, strength: float, generator: torch.Generator | None) -> Gradients:
    magnitudes = torch.cat([g.abs().flatten().float().cpu() for g in gradients.values()])
    # kthvalue, since torch.quantile refuses more than 16 million entries.
    sigma = strength * float(magnitudes.kthvalue(math.ceil(0.95 * magnitudes.numel())).values)
    return {
        name: g + sigma * torch.randn(g.shape, generator=generator, dtype=g.dtype).to(g.device)
        for name, g in gradients.items()
    }


def _clip(gradients: Gradients, strength: float, generator: torch.Generator | None) -> Gradients:
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
    scale = min(1.0, strength / norm) if norm > 0 else 1.0
    return {name: g * scale for name, g in gradients.items()}


def _prune(gradients: Gradients, strength: float, generator: torch.Generator | None) -> Gradients:
    pruned = {}
    for name, g in gradients.items():
        flat = g.flatten()
        smallest = flat.abs().argsort(stable=True)[: math.floor(strength * flat.numel())]
        pruned[name] = flat.index_fill(0, smallest, 0.0).reshape(g.shape)
    return pruned


def _quantise(gradients: Gradients, strength: float, generator: torch.Generator | None) -> Gradients:
    levels = 2 ** int(strength) - 1
    rounded = {}
    for name, g in gradients.items():
        low, high = g.min(), g.max()
        step = (high - low) / levels
        rounded[name] = g if step == 0 else low + ((g - low) / step).round() * step
    return rounded


_DEFENCES: dict[str, Callable[[Gradients, float, torch.Generator | None], Gradients]] = {
    "none": _none,
    "noise": _noise,
    "clip": _clip,
    "prune": _prune,
    "quantise": _quantise,
}

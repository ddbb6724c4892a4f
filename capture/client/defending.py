"""What a client does to its gradient before it sends it: its defences, applied one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..defences import FROM_IMAGES, DefenceError, defence_problem
from ..update import CapturedUpdate
from .config import ClientConfig
from .dp_sgd import noisy_mean
from .gradient import capture_gradient
from .own_defence import apply_own_defence
from .soteria import soteria_gradient

Gradients = dict[str, Tensor]


def defend(
    config: ClientConfig,
    model: nn.Module,
    update: CapturedUpdate,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
) -> Gradients:
    """The gradient of an update after every defence of its client, in order.

    Args:
        config: The client's settings.
        model: The server's model; left as it was.
        update: Before any defence.
        images: Behind it, pixels in [0, 1].
        labels: One class index per image.
        generator: Source of the defences' noise.

    Raises:
        DefenceError: One that this model does not allow, or that the update cannot have, in one sentence.
    """
    gradients: Gradients = dict(update.gradients)
    for defence in config.defences:
        if defence.name == "dp_sgd":
            gradients = _private_step(config, model, images, labels, defence.strength, generator)
        elif defence.name == "soteria":
            inputs = update.normalisation.apply(images.to(next(model.parameters())))
            try:
                name, weight = soteria_gradient(model, inputs, labels, defence.strength, config.bn)
            except ValueError as error:
                raise DefenceError(str(error)) from None
            gradients = {**gradients, name: weight.cpu()}
        else:
            gradients = apply_defence(gradients, defence.name, defence.strength, generator)
    return gradients


def _private_step(
    config: ClientConfig,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    noise_multiplier: float,
    generator: torch.Generator,
) -> Gradients:
    ones = zip(torch.split(images, 1), torch.split(labels, 1), strict=True)
    per_image = (
        capture_gradient(model, image, label, normalisation=config.normalisation, batch_norm=config.bn).gradients
        for image, label in ones
    )
    return noisy_mean(per_image, config.defence_clip, noise_multiplier, generator)


def apply_defence(
    gradients: Mapping[str, Tensor], name: str, strength: float, generator: torch.Generator | None = None
) -> Gradients:
    """The gradient after the defence, new tensors under the same names; the given ones are left as they are.

    - ``none``: a copy.
    - ``noise``: Gaussian, sigma = strength x the 95th percentile of |g| over the whole update.
    - ``clip``: the whole update scaled so that its L2 norm is at most strength (Abadi et al. 2016, without the noise).
    - ``prune``: in each tensor the share ``strength`` of entries of smallest magnitude set to zero.
    - ``quantise``: each tensor rounded to 2^strength evenly spaced values between its minimum and its maximum.

    - any other: a plug-in's (see ``DefenceFunction``), which is imported and run.

    ``dp_sgd`` and ``soteria`` change the gradient while it is computed: ``simulate_client`` applies them.

    Batch-norm statistics that a client shares are not touched: a defence here covers the gradient only.

    Args:
        gradients: By parameter name.
        name: One of the names above, or a plug-in's.
        strength: See above; ignored bits of it are an error, never silently dropped.
        generator: Source of the noise, on the CPU; the same state gives the same noise.

    Raises:
        DefenceError: An unknown name or a strength outside its range, in one sentence.
        PluginError: A plug-in that cannot be had, or does not keep its protocol.
    """
    problem = defence_problem(name, strength)
    if problem:
        raise DefenceError(problem)
    if name in FROM_IMAGES:
        raise DefenceError(
            f"the defence {name!r} needs the images, not only their gradient: simulate_client applies it"
        )
    copies = {key: value.detach().clone() for key, value in gradients.items()}
    if name not in _DEFENCES:
        return apply_own_defence(copies, name, strength, generator or torch.Generator())
    return _DEFENCES[name](copies, strength, generator)


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

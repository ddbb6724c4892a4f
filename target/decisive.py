"""On which facts the result of an attack hangs: those that change what the update would be for the same images."""

from __future__ import annotations

from torch import nn

from ..capture import CapturedUpdate, batch_norm_layers

_ALWAYS = (
    "image_count",
    "normalisation",
    "loss",
    "reduction",
    "loss_scale",
    "label_smoothing",
    "penalty",
    "defences",
    "sampling",
)
_OF_TRAINING = ("learning_rate", "epochs", "batch_size", "momentum", "weight_decay")


def decisive_facts(update: CapturedUpdate, model: nn.Module) -> frozenset[str]:
    """Their names. How many clients were averaged is not among them: the images of all are one batch.

    Args:
        update: What the client sent.
        model: The server's model.
    """
    found = set(_ALWAYS)
    if batch_norm_layers(model):
        found.add("batch_norm")
    if random_layers(model):
        found.add("dropout")
    local = update.local
    if local is not None:
        found |= set(_OF_TRAINING)
        if local.steps(update.image_count) == 1:
            # The velocity of a first step is its gradient.
            found.discard("momentum")
        if len(local.batches(update.image_count)) > 1:
            found.add("shuffled")
    return frozenset(found)


def random_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that draw random numbers in training mode: dropout, and stochastic depth by its usual names.

    A call of ``torch.nn.functional.dropout`` is not seen here.
    """
    return tuple(name for name, module in model.named_modules() if _draws(module))


def _draws(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    # torchvision and timm have classes of their own for it.
    return type(module).__name__ in ("StochasticDepth", "DropPath", "DropBlock2d") and _chance(module) > 0


def _chance(module: nn.Module) -> float:
    value = getattr(module, "p", getattr(module, "drop_prob", 1.0))
    return float(value) if isinstance(value, int | float) else 1.0

"""On which facts the result of an attack hangs: those that change what the update would be for the same images."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

# The public names (BatchNorm1d/2d/3d, SyncBatchNorm) have this class in common.
from torch.nn.modules.batchnorm import _BatchNorm

from ..capture import CapturedUpdate, ModelError, batch_norm_layers
from ..capture.copying import copy_model
from ..capture.forward import on_probes
from ..capture.labels.final_layer import natural_noise

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
    local = update.local
    count = update.image_count if local is None else len(local.batches(update.image_count)[0])
    if draws_in_training(model, update.image_shape, count):
        found.add("dropout")
    if local is not None:
        found |= set(_OF_TRAINING)
        if local.steps(update.image_count) == 1:
            # The velocity of a first step is its gradient.
            found.discard("momentum")
        if len(local.batches(update.image_count)) > 1:
            found.add("shuffled")
    return frozenset(found)


def draws_in_training(model: nn.Module, shape: tuple[int, int, int], count: int = 2) -> bool:
    """Whether a pass in training mode draws random numbers: dropout and stochastic depth do, as layers or as calls.

    Found by running one input twice, batch norm on its running statistics. A model that cannot be run so is taken for
    one that draws.

    Args:
        model: left as it was; the global random state too.
        shape: channels, height, width of an image.
        count: of the client's batch, for a model that takes no other.
    """
    try:
        return on_probes(partial(_draws, model, shape), shape, 2, count)
    except ModelError:
        return True


def _draws(model: nn.Module, shape: tuple[int, int, int], count: int) -> bool:
    probe = natural_noise(count, shape).to(next(model.parameters()))
    outputs = []
    for seed in range(2):
        # A copy each time: in training mode a spectral norm moves its buffers, which is no chance.
        copied = copy_model(model)
        for module in copied.modules():
            module.training = not isinstance(module, _BatchNorm)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            outputs.append(_first_tensor(copied(probe.clone())))
    return outputs[0] is None or outputs[1] is None or not torch.equal(outputs[0], outputs[1])


def _first_tensor(output: object) -> torch.Tensor | None:
    """What a model returns, or the first tensor in it: some return auxiliary outputs beside logits in training."""
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return next((value for value in values if isinstance(value, torch.Tensor)), None)

"""On which facts the result of an attack hangs: those that change what the update would be for the same images."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

# The public names (BatchNorm1d/2d/3d, SyncBatchNorm) have this class in common.
from torch.nn.modules.batchnorm import _BatchNorm

from .batch_norm import batch_norm_layers
from .copying import copy_model
from .facts import BatchNormMode
from .forward import on_probes
from .labels.final_layer import natural_noise
from .stated import state_facts
from .update import CapturedUpdate
from .weights import ModelError

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
    """Their names. How many clients were averaged is among them only where their images are not simply one batch.

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
    if not one_batch(update, model):
        found.add("clients")
    return frozenset(found)


def one_batch(update: CapturedUpdate, model: nn.Module) -> bool:
    """Whether the images of several clients would be as good as one batch: not after local steps of each, with
    statistics of each one's own batch, or where each clipped by a factor of its own."""
    local = update.local
    several_steps = local is not None and local.steps(update.image_count) > 1
    return not (several_steps or of_own_batches(update, model))


def of_own_batches(update: CapturedUpdate, model: nn.Module) -> bool:
    """Whether a client's gradient depends on what its other images are: by the batch's statistics, or a clipping."""
    own_statistics = update.batch_norm is not BatchNormMode.EVAL and bool(batch_norm_layers(model))
    return own_statistics or any(one.name == "clip" for one in update.defences)


def words_for_assumed(update: CapturedUpdate, model: nn.Module) -> str:
    """One sentence on the decisive facts that nobody told and nothing shows, and how to give them; empty without any.

    Args:
        update: What the client sent.
        model: The server's model.
    """
    stated = state_facts(update.facts, decisive_facts(update, model), {})
    found = [fact for fact in stated if fact.doubtful]
    if not found:
        return ""
    listed = "; ".join(f"{fact.title.lower()}: {fact.words} (told.{fact.name})" for fact in found)
    return (
        f"nobody told and nothing shows {len(found)} decisive fact{'s' * (len(found) > 1)}, so that the commonest "
        "value is assumed and no attack can show that nothing leaks: give each one when recording (run_config, local, "
        f"normalisation, batch_norm or stated), or as told.FACT=VALUE beside update=FILE; assumed are {listed}"
    )


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
    probe, outputs = natural_noise(count, shape).to(next(model.parameters())), list[_Pass]()
    for seed in range(2):
        # A copy each time: in training mode a spectral norm moves its buffers, which is no chance.
        copied = copy_model(model)
        for module in copied.modules():
            module.training = not isinstance(module, _BatchNorm)
        outputs.append(_output(copied, probe, seed))
    return _differ(outputs)


def draws(model: nn.Module, shape: tuple[int, int, int]) -> bool:
    """The same of a model that is being trained, itself, with every module in the mode that it is in."""
    try:
        probe = natural_noise(2, shape).to(next(model.parameters()))
        return _differ([_output(model, probe, seed) for seed in range(2)])
    # A model is its owner's code: it may refuse such an input with anything, and the training goes on.
    except Exception:
        return True


_Pass = tuple[torch.Tensor | None, bool]


def _output(model: nn.Module, probe: torch.Tensor, seed: int) -> _Pass:
    """What the model returns, and whether it drew from torch's generators on the way."""
    devices = [probe.device] if probe.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        before = _random_state(devices)
        output = _first_tensor(model(probe.clone()))
        return output, not torch.equal(before, _random_state(devices))


def _random_state(devices: list[torch.device]) -> torch.Tensor:
    return torch.cat([torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)])


def _differ(outputs: list[_Pass]) -> bool:
    """Whether chance has a part in it. That a rare draw left both outputs alike, as a drop path of few images does,
    says nothing; draws of other generators than torch's show in the outputs alone."""
    (one, drew), (other, drew_again) = outputs
    return drew or drew_again or one is None or other is None or not torch.equal(one, other)


def _first_tensor(output: object) -> torch.Tensor | None:
    """What a model returns, or the first tensor in it: some return auxiliary outputs beside logits in training."""
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return next((value for value in values if isinstance(value, torch.Tensor)), None)

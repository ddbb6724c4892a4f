"""A client that trains before it sends: local epochs of SGD, as in federated averaging."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from ..batch import Arrays, as_batch, require_classes
from ..batch_norm import client_mode, recording_mode, require_batch_statistics, running_buffers
from ..copying import copy_model
from ..errors import UpdateError
from ..facts import BatchNormMode, Fact, known_facts
from ..forward import run
from ..local_training import LocalTraining
from ..loss_recognition import state_loss
from ..normalisation import IMAGENET, Normalisation
from ..unwrap import unwrap
from ..update import CapturedUpdate
from ..weight_delta import capture_weight_delta


def train_locally(
    model: nn.Module,
    images: Arrays,
    labels: Arrays,
    *,
    local: LocalTraining,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    normalisation: Normalisation | tuple[Sequence[float], Sequence[float]] = IMAGENET,
    batch_norm: BatchNormMode | str = BatchNormMode.EVAL,
    model_id: str | None = None,
    generator: torch.Generator | None = None,
) -> CapturedUpdate:
    """What a client sends after its local epochs: the weight delta, and what it shares of batch norm.

    A copy of the model is trained with ``torch.optim.SGD``; the server's model stays as it was.

    Args:
        model: The server's model.
        images: Pixels in [0, 1], in the order in which the client trains on them: a tensor, an array, or a list.
        labels: One class index per image, in the same ways.
        local: Epochs, batch size and optimiser; the learning rate must be a number.
        loss: ``loss(outputs, labels)`` of one step's batch, recorded as in ``capture_gradient``.
        normalisation: Mean and deviation per channel; the model is fed ``(images - mean) / std``.
        batch_norm: How the client runs its batch-norm layers, and whether it shares their statistics after training.
        model_id: A name for the model in files and reports; by default its class.
        generator: Draws each epoch's order when ``local.shuffled``, on the CPU.

    Raises:
        UpdateError: The batch is none (see `capture_gradient`), cannot be run in this mode, or the weights do not stay
            finite.
        ModelError: The model does not take them, or returns no logits.
    """
    mode = BatchNormMode(batch_norm)
    normalisation = Normalisation.of(normalisation)
    if local.learning_rate is None:
        raise UpdateError("a client cannot train without a learning rate; give one")
    images, labels = as_batch(images, labels, normalisation)
    local.require_images(len(images))
    model = unwrap(model)
    after = copy_model(model)
    trained = [parameter for parameter in after.parameters() if parameter.requires_grad]
    if not trained:
        raise UpdateError("the model has no parameter with requires_grad=True, so the client has nothing to train")
    inputs, targets = normalisation.apply(images.to(trained[0])), labels.to(trained[0].device)
    if mode is not BatchNormMode.EVAL:
        require_batch_statistics(model, inputs[: min(map(len, local.batches(len(images))))])
    optimiser = torch.optim.SGD(
        trained, lr=local.learning_rate, momentum=local.momentum, weight_decay=local.weight_decay
    )
    shared = mode is BatchNormMode.TRAIN_SHARED
    stated: dict[str, Fact[Any]] = {}
    with recording_mode(after) if shared else client_mode(after, mode), torch.enable_grad():
        for order in _orders(local, len(images), generator):
            for batch in local.batches(len(images)):
                chosen = order[batch.start : batch.stop]
                optimiser.zero_grad()
                outputs = require_classes(run(after, inputs[chosen]), targets[chosen])
                value = loss(outputs, targets[chosen])
                stated = stated or state_loss(loss, value, outputs, targets[chosen])
                torch.autograd.backward(value)
                optimiser.step()
        state = {name: tensor.detach().clone() for name, tensor in after.named_parameters()}
        state |= running_buffers(after) if shared else {}
    found = capture_weight_delta(
        model,
        state,
        image_count=len(images),
        image_shape=(images.shape[1], images.shape[2], images.shape[3]),
        local=local,
        normalisation=normalisation,
        batch_norm=mode,
        model_id=model_id or type(model).__name__,
    )
    facts = known_facts(len(images), normalisation, mode, stated["loss"].value, local).stating(**stated)
    return replace(found, facts=facts)


def _orders(local: LocalTraining, count: int, generator: torch.Generator | None) -> list[Int[Tensor, " batch"]]:
    if local.shuffled:
        return [torch.randperm(count, generator=generator) for _ in range(local.epochs)]
    return [torch.arange(count)] * local.epochs

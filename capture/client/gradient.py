"""What one pass over private images gives: the gradient of a client's loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Arrays, as_batch, require_classes
from ..batch_norm import client_mode, recording_mode, require_batch_statistics, running_buffers
from ..errors import UpdateError
from ..facts import BatchNormMode, known_facts
from ..forward import gradient, run
from ..hashing import weight_hash
from ..loss_recognition import state_loss
from ..normalisation import IMAGENET, Normalisation
from ..unwrap import unwrap
from ..update import CapturedUpdate

Loss = Callable[[Tensor, Tensor], Tensor]


def capture_gradient(
    model: nn.Module,
    images: Arrays,
    labels: Arrays,
    *,
    loss: Loss = F.cross_entropy,
    normalisation: Normalisation | tuple[Sequence[float], Sequence[float]] = IMAGENET,
    batch_norm: BatchNormMode | str = BatchNormMode.EVAL,
    model_id: str | None = None,
) -> CapturedUpdate:
    """What a client would send after one pass over its batch: the gradient of its loss, and what it shares.

    The model is left as it was: weights, buffers, modes and ``.grad`` are unchanged.

    Args:
        model: The server's model; wrappers such as DataParallel and ``torch.compile`` are taken off.
        images: Pixels in [0, 1], shape (B, C, H, W): a tensor, an array, or a list of either.
        labels: One class index per image, shape (B,), in the same ways.
        loss: ``loss(outputs, labels)``. It is recorded as what it is, with its reduction, its scale and its smoothing
            (see ``state_loss``); the attack matches with it.
        normalisation: Mean and deviation per channel; the model is fed ``(images - mean) / std``.
        batch_norm: How the client runs its batch-norm layers, and whether it shares their statistics.
        model_id: A name for the model in files and reports; by default its class.

    Returns:
        The update, on the CPU. Parameters with ``requires_grad=False`` are not part of it; parameters that the loss
        does not reach have a zero gradient.

    Raises:
        UpdateError: The batch is none (pixels outside [0, 1], channels last or of another number than the
            normalisation's, a label that is no class), cannot be run in this mode, or has no finite gradient.
        ModelError: The model does not take the batch, returns no logits, or its gradient cannot be taken.
    """
    model = unwrap(model)
    mode = BatchNormMode(batch_norm)
    normalisation = Normalisation.of(normalisation)
    images, labels = as_batch(images, labels, normalisation)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise UpdateError("the model has no parameter with requires_grad=True, so it has no gradient to capture")
    like = next(iter(parameters.values()))
    inputs = normalisation.apply(images.to(like))
    if mode is not BatchNormMode.EVAL:
        require_batch_statistics(model, inputs)
    shared = mode is BatchNormMode.TRAIN_SHARED
    with recording_mode(model) if shared else client_mode(model, mode), torch.enable_grad():
        outputs, targets = require_classes(run(model, inputs), labels), labels.to(like.device)
        value = loss(outputs, targets)
        stated = state_loss(loss, value, outputs, targets)
        found = gradient(value, list(parameters.values()))
        buffers = {name: b.cpu() for name, b in running_buffers(model).items()} if shared else None
    return CapturedUpdate(
        gradients={name: g.detach().cpu().clone() for name, g in zip(parameters, found, strict=True)},
        image_shape=(images.shape[1], images.shape[2], images.shape[3]),
        model_id=model_id or type(model).__name__,
        weight_hash=weight_hash(model),
        facts=known_facts(images.shape[0], normalisation, mode, stated["loss"].value).stating(**stated),
        buffers=buffers,
    )

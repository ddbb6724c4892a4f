"""The simulated client: the only place where private images exist before the audit looks at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..batch import as_batch, require_classes, require_unit_range
from ..batch_norm import client_mode, recording_mode, require_batch_statistics, running_buffers
from ..defences import Defence, DefenceError, Gradients, apply_defence, defence_words
from ..errors import UpdateError
from ..facts import BatchNormMode, assumed, known_facts, told
from ..forward import gradient, run
from ..hashing import weight_hash
from ..losses import state_loss
from ..models import load_model
from ..normalisation import IMAGENET, Normalisation
from ..unwrap import unwrap
from ..update import CapturedUpdate
from .config import ClientConfig
from .dp_sgd import noisy_mean, spent_privacy
from .images import class_labels, load_images
from .label_words import AUTO, UNIQUE, folder_labels, parse_labels
from .local_training import train_locally
from .soteria import soteria_gradient

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PrivateBatch:
    """The truth: what the client trained on. It goes to the audit and nowhere else."""

    images: Float[Tensor, "batch channel height width"]
    """Pixels in [0, 1]."""
    labels: Int[Tensor, " batch"]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        require_unit_range(self.images, "the private pixels")
        counts = (len(self.images), len(self.labels), len(self.names))
        if len(set(counts)) > 1:
            raise UpdateError(
                f"the private batch has {counts[0]} images, {counts[1]} labels and {counts[2]} names; give one label "
                "and one name per image"
            )


def capture_gradient(
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"],
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


def simulate_client(
    config: ClientConfig, seed: int, batch: PrivateBatch | None = None
) -> tuple[CapturedUpdate, nn.Module, PrivateBatch]:
    """One client's update, the server's model that it belongs to, and the truth for the audit.

    With several clients the update is the average of theirs, and the truth holds the images of all, in their order.

    Args:
        config: The client's settings.
        seed: Random weights (when no file gives them) and the defence's noise are a function of it.
        batch: What the client trains on in place of the images and labels that its settings name.

    Raises:
        ModelError, ImageError, UpdateError, DefenceError: What cannot be loaded or run, in one sentence.
    """
    model = load_model(config.model, config.classes, config.image_shape, config.weights, seed)
    batch = batch or load_batch(config)
    generator = torch.Generator().manual_seed(seed)
    return send_update(config, model, batch.images, batch.labels, generator, seed), model, batch


def send_update(
    config: ClientConfig, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, seed: int = 0
) -> CapturedUpdate:
    """What the server sees of these images: one client's update after its defence, or the average of several clients'.

    Args:
        config: The client's settings; its own images and labels are not looked at.
        model: The server's model; left as it was.
        images: Pixels in [0, 1], those of each client after those of the one before.
        labels: One class index per image.
        generator: Source of the defence's noise.
        seed: Of the order of local epochs.

    Raises:
        UpdateError, DefenceError: What cannot be run, or leaves nothing, in one sentence.
    """
    parts = zip(*(torch.split(whole, config.batch_size) for whole in (images, labels)), strict=True)
    updates = [_sent(config, model, own_images, own_labels, seed, generator) for own_images, own_labels in parts]
    gradients = {
        name: torch.stack([update.gradients[name] for update in updates]).mean(dim=0) if len(updates) > 1 else g
        for name, g in updates[0].gradients.items()
    }
    applied = applied_defences(config)
    if applied and not any(bool(g.any()) for g in gradients.values()):
        raise DefenceError(
            f"the defence {defence_words(applied)} leaves nothing of the update but zeros; use a weaker one"
        )
    facts = replace(
        updates[0].facts.stating(image_count=told(len(images)), defences=told(applied), clients=told(config.clients)),
        privacy=_privacy(config),
    )
    return replace(updates[0], gradients=gradients, facts=facts)


def load_batch(config: ClientConfig) -> PrivateBatch:
    """The images and labels that a client's settings name; those of all clients.

    Raises:
        ImageError, ClientError: What cannot be loaded, in one sentence.
    """
    count = config.image_count
    images, names = load_images(config.images, count, config.image_shape)
    found = class_labels(config.images, count) if config.labels == AUTO else None
    if found is not None:
        return PrivateBatch(images, folder_labels(found, config.classes, config.images), names)
    words = UNIQUE if config.labels == AUTO else config.labels
    return PrivateBatch(images, parse_labels(words, count, config.classes), names)


def _sent(
    config: ClientConfig, model: nn.Module, images: Tensor, labels: Tensor, seed: int, generator: torch.Generator
) -> CapturedUpdate:
    """What one client sends."""
    local = config.local_training()
    if local is not None:
        # Orders of its own, so that the defence's noise does not depend on the number of epochs.
        orders = torch.Generator().manual_seed(seed)
        update = train_locally(
            model,
            images,
            labels,
            local=local,
            normalisation=config.normalisation,
            batch_norm=config.bn,
            model_id=config.model,
            generator=orders,
        )
        if not config.learning_rate_known:
            update = update.stating(learning_rate=assumed(None, "the client keeps it to itself"))
    else:
        update = capture_gradient(
            model, images, labels, normalisation=config.normalisation, batch_norm=config.bn, model_id=config.model
        )
    return replace(update, gradients=_defended(config, model, update, images, labels, generator))


def _defended(
    config: ClientConfig,
    model: nn.Module,
    update: CapturedUpdate,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
) -> Gradients:
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


def applied_defences(config: ClientConfig) -> tuple[Defence, ...]:
    """The client's defences with all their parameters."""
    return tuple(
        replace(one, clip=(config.defence_clip,)) if one.name == "dp_sgd" else one
        for one in config.defences
        if one.name != "none"
    )


def _privacy(config: ClientConfig) -> str:
    """What DP-SGD spends, in words. What follows it sees no image, and spends nothing more."""
    private = next((defence for defence in config.defences if defence.name == "dp_sgd"), None)
    if private is None:
        return ""
    return spent_privacy(private.strength, config.dp_sample_rate, config.dp_steps, config.dp_delta)

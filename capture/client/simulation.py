"""The simulated client: from its settings to what the server sees."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..defences import DefenceError, defence_words
from ..facts import assumed, told
from ..models import load_model
from ..room import Shortage, shortage
from ..update import CapturedUpdate
from .config import ClientConfig, ClientError
from .defending import defend
from .dp_sgd import spent_privacy
from .gradient import capture_gradient
from .local_training import train_locally
from .private_batch import PrivateBatch, load_batch


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
        ClientError: More images at once than this machine's memory holds, or labels that do not fit.
    """
    model = load_model(config.model, config.classes, config.image_shape, config.weights, seed)
    _require_room(config, model)
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
    applied = config.applied_defences
    if applied and not any(bool(g.any()) for g in gradients.values()):
        raise DefenceError(
            f"the defence {defence_words(applied)} leaves nothing of the update but zeros; use a weaker one"
        )
    facts = replace(
        updates[0].facts.stating(image_count=told(len(images)), defences=told(applied), clients=told(config.clients)),
        privacy=_privacy(config),
    )
    return replace(updates[0], gradients=gradients, facts=facts)


def _require_room(config: ClientConfig, model: nn.Module) -> None:
    at_once = config.batch_size
    if config.local_epochs and config.local_batch_size:
        at_once = config.local_batch_size
    if missing := shortage(model, config.image_shape, config.image_count, at_once, by_pixels=False):
        raise ClientError(_beyond_memory(config, missing, at_once))


def _beyond_memory(config: ClientConfig, missing: Shortage, at_once: int) -> str:
    """What to say of a batch that this machine does not hold, with the settings that make it smaller."""
    channels, height, width = config.image_shape
    size = f"images of {channels} x {height} x {width}"
    if missing.by_images:
        counts = {"client.batch_size": config.batch_size, "client.clients": config.clients}
        what = f"to hold the simulated client's {config.image_count:,} {size}"
    else:
        counts = {"client.local_batch_size" if at_once < config.batch_size else "client.batch_size": at_once}
        what = f"the simulated client's gradient of {at_once:,} {size} in {config.model}"
    smaller = [key for key, count in counts.items() if count > 1] + ["client.image_size"]
    return f"{what} {missing.words}; give a smaller {' or '.join(smaller)}, or take a larger machine"


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
    return replace(update, gradients=defend(config, model, update, images, labels, generator))


def _privacy(config: ClientConfig) -> str:
    """What DP-SGD spends, in words. What follows it sees no image, and spends nothing more."""
    private = next((defence for defence in config.defences if defence.name == "dp_sgd"), None)
    if private is None:
        return ""
    return spent_privacy(private.strength, config.dp_sample_rate, config.dp_steps, config.dp_delta)

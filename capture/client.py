"""The simulated client: the only place where private images exist before the audit looks at them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .batch_norm import client_mode, recording_mode, require_batch_statistics, running_buffers
from .defences import apply_defence, defence_problem
from .images import load_images
from .local_client import require_batch, train_locally
from .local_training import LocalTraining
from .models import load_model
from .update import IMAGENET, BatchNormMode, CapturedUpdate, Normalisation, UpdateError, weight_hash

Loss = Callable[[Tensor, Tensor], Tensor]


class ClientError(ValueError):
    """A client setting that cannot be carried out."""


@dataclass(frozen=True)
class PrivateBatch:
    """The truth: what the client trained on. It goes to the audit and nowhere else."""

    images: Float[Tensor, "batch channel height width"]
    """Pixels in [0, 1]."""
    labels: Int[Tensor, " batch"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class ClientConfig:
    """The simulated client."""

    model: str = "convnet"
    """The bundled "convnet", a torchvision classification model by name, "timm:NAME", or "module:callable"."""
    weights: str | None = None
    """File with the model's weights (.safetensors, .pt or .pth); without it the weights are random, from the seed."""
    classes: int = 10
    """Number of classes that the model tells apart."""
    images: str = "photos"
    """Folder of images, taken in order of name, or "photos" for the natural photos that scikit-image ships."""
    batch_size: int = 4
    """Images that the client averages its gradient over."""
    image_size: int = 32
    """Side in pixels to which each image's largest centred square is resized."""
    labels: str = "unique"
    """"unique" for 0, 1, 2, ..., or one label per image separated by commas, such as 0,0,3,7."""
    bn: str = "eval"
    """Batch norm in the client: "eval", "train_shared" (statistics sent along) or "train_private" (kept)."""
    local_epochs: int = 0
    """Epochs that the client trains before it sends its weight delta; 0: it sends the gradient of one batch instead."""
    local_batch_size: int = 0
    """Images in each of its local steps; 0: all of client.batch_size."""
    learning_rate: float = 0.01
    """Of its local steps (plain SGD)."""
    learning_rate_known: bool = True
    """Whether the server knows that learning rate; false: the attack has to estimate it."""
    momentum: float = 0.0
    """Of its local steps."""
    weight_decay: float = 0.0
    """Of its local steps."""
    shuffled: bool = False
    """Whether each local epoch has an order of its own, which the server does not know."""
    defence: str = "none"
    """What the client does to the gradient before sending it: "none", "noise", "clip", "prune" or "quantise"."""
    defence_strength: float = 0.0
    """noise: multiple of the 95th percentile of |gradient|; clip: largest L2 norm; prune: share; quantise: bits."""

    def __post_init__(self) -> None:
        found = self.problems()
        if found:
            raise ClientError("; ".join(found))

    def problems(self) -> list[str]:
        """Every setting that cannot be carried out, one sentence each."""
        found = []
        for key, lowest in (("classes", 2), ("batch_size", 1), ("image_size", 4)):
            if getattr(self, key) < lowest:
                found.append(f"client.{key} is {getattr(self, key)}; it must be at least {lowest}")
        if self.bn not in list(BatchNormMode):
            found.append(f"client.bn is {self.bn!r}; use one of {', '.join(BatchNormMode)}")
        problem = defence_problem(self.defence, self.defence_strength)
        if problem:
            found.append(problem)
        found += self._local_problems()
        if not found:
            try:
                parse_labels(self.labels, self.batch_size, self.classes)
            except ClientError as error:
                found.append(str(error))
        return found

    def _local_problems(self) -> list[str]:
        found = []
        if self.local_epochs < 0:
            found.append(f"client.local_epochs is {self.local_epochs}; it must be at least 1, or 0 to send a gradient")
        if not 0 <= self.local_batch_size <= self.batch_size:
            found.append(
                f"client.local_batch_size is {self.local_batch_size}; it must be between 1 and "
                f"client.batch_size={self.batch_size}, or 0 for all images in one batch"
            )
        elif self.local_batch_size and not self.local_epochs:
            found.append(
                f"client.local_batch_size={self.local_batch_size} is of local training alone; give client.local_epochs "
                "of at least 1 too"
            )
        for key, value, most in (("momentum", self.momentum, 1.0), ("weight_decay", self.weight_decay, math.inf)):
            if not 0 <= value < most:
                found.append(f"client.{key} is {value}; it must be at least 0 and below {most:g}")
        if not 0 < self.learning_rate < math.inf:
            found.append(f"client.learning_rate is {self.learning_rate}; it must be a finite number above 0")
        if not found and self.local_epochs and self.batch_size > 0:
            try:
                self.local_training()
            except UpdateError as error:
                found.append(f"client.local_epochs={self.local_epochs}: {error}")
        return found

    def local_training(self) -> LocalTraining | None:
        """The client's local steps with their learning rate; None when it sends a gradient.

        Raises:
            UpdateError: There are more steps than can be retraced.
        """
        if not self.local_epochs:
            return None
        local = LocalTraining(
            self.learning_rate,
            self.local_epochs,
            self.local_batch_size or None,
            self.momentum,
            self.weight_decay,
            self.shuffled,
        )
        local.require_images(self.batch_size)
        return local


def parse_labels(text: str, batch_size: int, classes: int) -> Int[Tensor, " batch"]:
    """One label per image from ``client.labels``.

    Args:
        text: ``"unique"`` for 0, 1, ..., batch_size - 1, or labels separated by commas.
        batch_size: How many labels there must be.
        classes: Each label must lie in 0 .. classes - 1.

    Raises:
        ClientError: What is wrong with the text, in one sentence.
    """
    if text.strip() == "unique":
        if batch_size > classes:
            raise ClientError(
                f"client.labels=unique needs as many classes as images, but there are {batch_size} images and "
                f"{classes} classes; raise client.classes or list the labels, such as client.labels=0,0,1,1"
            )
        return torch.arange(batch_size)
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ClientError(f"client.labels is {text!r}; use unique, or whole numbers separated by commas, such as 0,0,3")
    labels = [int(word) for word in words]
    if len(labels) != batch_size:
        raise ClientError(f"client.labels lists {len(labels)} labels for {batch_size} images; list one per image")
    if max(labels) >= classes:
        raise ClientError(
            f"client.labels names class {max(labels)}, but with {classes} classes the labels are 0 to {classes - 1}"
        )
    return torch.tensor(labels)


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
    """What a client would send after one pass over its batch: the gradient of the mean loss, and what it shares.

    The model is left as it was: weights, buffers, modes and ``.grad`` are unchanged.

    Args:
        model: The server's model.
        images: Pixels in [0, 1], shape (B, C, H, W).
        labels: One class index per image, shape (B,).
        loss: ``loss(logits, labels)``, a mean over the batch.
        normalisation: Mean and deviation per channel; the model is fed ``(images - mean) / std``.
        batch_norm: How the client runs its batch-norm layers, and whether it shares their statistics.
        model_id: A name for the model in files and reports; by default its class.

    Returns:
        The update, on the CPU. Parameters with ``requires_grad=False`` are not part of it; parameters that the loss
        does not reach have a zero gradient.

    Raises:
        UpdateError: The batch cannot be run in this mode, or its gradient is not finite.
    """
    mode = BatchNormMode(batch_norm)
    if not isinstance(normalisation, Normalisation):
        mean, std = normalisation
        normalisation = Normalisation(tuple(map(float, mean)), tuple(map(float, std)))
    require_batch(images, labels)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise UpdateError("the model has no parameter with requires_grad=True, so it has no gradient to capture")
    like = next(iter(parameters.values()))
    inputs = normalisation.apply(images.to(like))
    if mode is not BatchNormMode.EVAL:
        require_batch_statistics(model, inputs)
    shared = mode is BatchNormMode.TRAIN_SHARED
    with recording_mode(model) if shared else client_mode(model, mode), torch.enable_grad():
        value = loss(model(inputs), labels.to(like.device))
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, materialize_grads=True)
        buffers = {name: b.cpu() for name, b in running_buffers(model).items()} if shared else None
    return CapturedUpdate(
        gradients={name: g.detach().cpu().clone() for name, g in zip(parameters, found, strict=True)},
        image_count=images.shape[0],
        image_shape=(images.shape[1], images.shape[2], images.shape[3]),
        normalisation=normalisation,
        model_id=model_id or type(model).__name__,
        weight_hash=weight_hash(model),
        batch_norm=mode,
        buffers=buffers,
        loss=getattr(loss, "__name__", type(loss).__name__),
    )


def simulate_client(
    config: ClientConfig, seed: int, batch: PrivateBatch | None = None
) -> tuple[CapturedUpdate, nn.Module, PrivateBatch]:
    """One client's update, the server's model that it belongs to, and the truth for the audit.

    Args:
        config: The client's settings.
        seed: Random weights (when no file gives them) and the defence's noise are a function of it.
        batch: What the client trains on in place of the images and labels that its settings name.

    Raises:
        ModelError, ImageError, UpdateError: What cannot be loaded or run, in one sentence.
    """
    from dataclasses import replace

    model = load_model(config.model, config.classes, config.image_size, config.weights, seed)
    batch = batch or load_batch(config)
    images, labels = batch.images, batch.labels
    generator = torch.Generator().manual_seed(seed)
    local = config.local_training()
    if local is None:
        update = capture_gradient(model, images, labels, batch_norm=config.bn, model_id=config.model)
    else:
        # Orders of its own, so that the defence's noise does not depend on the number of epochs.
        orders = torch.Generator().manual_seed(seed)
        update = train_locally(
            model, images, labels, local=local, batch_norm=config.bn, model_id=config.model, generator=orders
        )
        if not config.learning_rate_known:
            update = replace(update, local=replace(local, learning_rate=None))
    defended = apply_defence(update.gradients, config.defence, config.defence_strength, generator)
    said = config.defence if config.defence == "none" else f"{config.defence} {config.defence_strength:g}"
    return replace(update, gradients=defended, defence=said), model, batch


def load_batch(config: ClientConfig) -> PrivateBatch:
    """The images and labels that a client's settings name.

    Raises:
        ImageError, ClientError: What cannot be loaded, in one sentence.
    """
    images, names = load_images(config.images, config.batch_size, config.image_size)
    return PrivateBatch(images, parse_labels(config.labels, config.batch_size, config.classes), names)

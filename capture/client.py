"""The simulated client: the only place where private images exist before the audit looks at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .batch_norm import client_mode, recording_mode, running_buffers, values_per_feature
from .defences import DefenceError, Gradients, apply_defence, defence_problem
from .dp_sgd import noisy_mean, spent_privacy
from .images import load_images
from .models import load_model
from .soteria import soteria_gradient
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
    """The bundled "convnet", a torchvision classification model by name, or "module:callable"."""
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
    defence: str = "none"
    """What the client does to its gradient: "none", "noise", "clip", "prune", "quantise", "dp_sgd" or "soteria"."""
    defence_strength: float = 0.0
    """noise: multiple of the 95th percentile of |gradient|; clip: largest L2 norm; prune: share; quantise: bits;
    dp_sgd: noise multiplier; soteria: share of the features."""
    defence_clip: float = 1.0
    """dp_sgd: largest L2 norm of one image's gradient."""
    dp_sample_rate: float = 0.01
    """dp_sgd: chance of each image to be in a step of the whole training, for the epsilon in the report."""
    dp_steps: int = 1000
    """dp_sgd: steps of the whole training, for the epsilon in the report."""
    dp_delta: float = 1e-5
    """dp_sgd: the delta that goes with the epsilon in the report."""
    clients: int = 1
    """Clients of batch_size images each whose updates are averaged before the server sees them: secure aggregation."""

    def __post_init__(self) -> None:
        found = self.problems()
        if found:
            raise ClientError("; ".join(found))

    def problems(self) -> list[str]:
        """Every setting that cannot be carried out, one sentence each."""
        found = []
        for key, lowest in (("classes", 2), ("batch_size", 1), ("image_size", 4), ("clients", 1), ("dp_steps", 1)):
            if getattr(self, key) < lowest:
                found.append(f"client.{key} is {getattr(self, key)}; it must be at least {lowest}")
        if self.bn not in list(BatchNormMode):
            found.append(f"client.bn is {self.bn!r}; use one of {', '.join(BatchNormMode)}")
        problem = defence_problem(self.defence, self.defence_strength)
        if problem:
            found.append(problem)
        found += self._privacy_problems()
        if self.clients > 1 and self.bn != BatchNormMode.EVAL:
            found.append(
                f"client.clients is {self.clients} and client.bn is {self.bn!r}: every client's batch statistics would "
                "differ, and an average of their gradients belongs to no single batch; use client.bn=eval"
            )
        if not found:
            try:
                parse_labels(self.labels, self.image_count, self.classes)
            except ClientError as error:
                found.append(str(error))
        return found

    @property
    def image_count(self) -> int:
        """Images behind the update that the server sees: those of all clients."""
        return self.batch_size * self.clients

    def _privacy_problems(self) -> list[str]:
        found = []
        if not 0 < self.defence_clip < float("inf"):
            found.append(f"client.defence_clip is {self.defence_clip:g}; it must be a finite norm above 0")
        if not 0 < self.dp_sample_rate <= 1:
            found.append(f"client.dp_sample_rate is {self.dp_sample_rate:g}; it must be above 0 and at most 1")
        if not 0 < self.dp_delta < 1:
            found.append(f"client.dp_delta is {self.dp_delta:g}; it must be above 0 and below 1")
        if self.defence == "dp_sgd" and self.bn != BatchNormMode.EVAL:
            found.append(
                f"client.defence is 'dp_sgd' and client.bn is {self.bn!r}: with the batch's statistics no gradient "
                "belongs to one image alone; use client.bn=eval"
            )
        return found


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
    _check_batch(images, labels)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise UpdateError("the model has no parameter with requires_grad=True, so it has no gradient to capture")
    like = next(iter(parameters.values()))
    inputs = normalisation.apply(images.to(like))
    if mode is not BatchNormMode.EVAL:
        _check_batch_statistics(model, inputs)
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


def simulate_client(config: ClientConfig, seed: int) -> tuple[CapturedUpdate, nn.Module, PrivateBatch]:
    """One client's update, the server's model that it belongs to, and the truth for the audit.

    Args:
        config: The client's settings.
        seed: Random weights (when no file gives them) and the defence's noise are a function of it.

    Raises:
        ModelError, ImageError, UpdateError: What cannot be loaded or run, in one sentence.
    """
    model = load_model(config.model, config.classes, config.image_size, config.weights, seed)
    images, names = load_images(config.images, config.image_count, config.image_size)
    labels = parse_labels(config.labels, config.image_count, config.classes)
    generator = torch.Generator().manual_seed(seed)
    updates = [
        _defended_update(config, model, own_images, own_labels, generator)
        for own_images, own_labels in zip(
            torch.split(images, config.batch_size), torch.split(labels, config.batch_size), strict=True
        )
    ]
    gradients = {
        name: torch.stack([update.gradients[name] for update in updates]).mean(dim=0) if len(updates) > 1 else g
        for name, g in updates[0].gradients.items()
    }
    if config.defence != "none" and not any(bool(g.any()) for g in gradients.values()):
        raise DefenceError(f"the defence {_told(config)} leaves nothing of the update but zeros; use a weaker one")
    update = replace(updates[0], gradients=gradients, image_count=config.image_count, defence=_told(config))
    return update, model, PrivateBatch(images, labels, names)


def _defended_update(
    config: ClientConfig, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
) -> CapturedUpdate:
    """What one client sends."""
    update = capture_gradient(model, images, labels, batch_norm=config.bn, model_id=config.model)
    gradients: Gradients
    if config.defence == "dp_sgd":
        ones = zip(torch.split(images, 1), torch.split(labels, 1), strict=True)
        per_image = (capture_gradient(model, image, label, batch_norm=config.bn).gradients for image, label in ones)
        gradients = noisy_mean(per_image, config.defence_clip, config.defence_strength, generator)
    elif config.defence == "soteria":
        inputs = update.normalisation.apply(images.to(next(model.parameters())))
        try:
            name, weight = soteria_gradient(model, inputs, labels, config.defence_strength, config.bn)
        except ValueError as error:
            raise DefenceError(str(error)) from None
        gradients = {**update.gradients, name: weight.cpu()}
    else:
        gradients = apply_defence(update.gradients, config.defence, config.defence_strength, generator)
    return replace(update, gradients=gradients)


def _told(config: ClientConfig) -> str:
    """The defence in the words that go with the update."""
    words = config.defence if config.defence == "none" else f"{config.defence} {config.defence_strength:g}"
    if config.defence == "dp_sgd":
        words += f", clip {config.defence_clip:g}; "
        words += spent_privacy(config.defence_strength, config.dp_sample_rate, config.dp_steps, config.dp_delta)
    if config.clients > 1:
        words += f"; averaged over {config.clients} clients"
    return words


def _check_batch(images: Tensor, labels: Tensor) -> None:
    if images.ndim != 4 or images.shape[0] < 1:
        raise UpdateError(f"images have shape {tuple(images.shape)}; give (batch, channel, height, width), batch >= 1")
    if labels.shape != images.shape[:1]:
        raise UpdateError(f"labels have shape {tuple(labels.shape)} for {images.shape[0]} images; give one per image")


def _check_batch_statistics(model: nn.Module, inputs: Tensor) -> None:
    starved = [name for name, calls in values_per_feature(model, inputs).items() if calls and min(calls) < 2]
    if starved:
        raise UpdateError(
            f"batch norm in train mode needs at least 2 values per feature, and layer {starved[0]!r} sees 1 at "
            f"{inputs.shape[0]} image(s) of {inputs.shape[2]}x{inputs.shape[3]} pixels; "
            "use a larger batch or image, or batch norm in eval mode"
        )

"""What the server holds: one client's update and the facts that the client and the server share about it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .errors import UpdateError as UpdateError
from .local_training import LocalTraining

LARGEST_IMAGE_COUNT = 65_536
LARGEST_CHANNEL_COUNT = 64
LARGEST_IMAGE_SIDE = 8_192


class BatchNormMode(StrEnum):
    """How the client ran its batch-norm layers, and whether their statistics left the client."""

    EVAL = "eval"
    """The server's running statistics normalise the batch; nothing about the batch is shared beside the gradient."""
    TRAIN_SHARED = "train_shared"
    """The batch's own statistics normalise it, and the running statistics after the step are sent along."""
    TRAIN_PRIVATE = "train_private"
    """The batch's own statistics normalise it and stay with the client."""


class UpdateKind(StrEnum):
    """What the tensors of an update are."""

    GRADIENT = "gradient"
    """The gradient of the mean loss over the client's batch."""
    WEIGHT_DELTA = "weight_delta"
    """Weights after the client's local steps minus weights before; ``CapturedUpdate.local`` tells the steps."""


@dataclass(frozen=True)
class Normalisation:
    """The affine map per channel between pixels in [0, 1] and what the model is fed: ``(x - mean) / std``."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise UpdateError(
                f"the normalisation has {len(self.mean)} means and {len(self.std)} deviations; "
                "give one of each per image channel"
            )
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise UpdateError(
                f"the normalisation is mean {self.mean} and std {self.std}; "
                "every mean must be finite and every deviation finite and above 0"
            )

    @classmethod
    def of(cls, given: Normalisation | tuple[Sequence[float], Sequence[float]]) -> Normalisation:
        """What was given, be it one already or mean and deviation per channel."""
        if isinstance(given, Normalisation):
            return given
        mean, std = given
        return cls(tuple(map(float, mean)), tuple(map(float, std)))

    def apply(
        self, images: Float[Tensor, "*batch channel height width"]
    ) -> Float[Tensor, "*batch channel height width"]:
        """Normalised pixels from pixels in [0, 1]."""
        return (images - _per_channel(self.mean, images)) / _per_channel(self.std, images)

    def invert(
        self, images: Float[Tensor, "*batch channel height width"]
    ) -> Float[Tensor, "*batch channel height width"]:
        """Pixels in the unit of [0, 1] from normalised pixels. Values outside the box stay outside: no clamp."""
        return images * _per_channel(self.std, images) + _per_channel(self.mean, images)

    def bounds(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Float[Tensor, "1 channel 1 1"], Float[Tensor, "1 channel 1 1"]]:
        """The lowest and the highest normalised value of each channel: where black (0) and white (1) land."""
        black = torch.zeros(1, len(self.mean), 1, 1, device=device, dtype=dtype)
        return self.apply(black), self.apply(torch.ones_like(black))


IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True)
class CapturedUpdate:
    """One client's update as an honest-but-curious server receives it. No private image is reachable from here."""

    gradients: dict[str, Tensor]
    """By parameter name, as in ``model.named_parameters()``; for a weight delta the differences of the weights."""
    image_count: int
    """B, the number of images that the gradient was averaged over, or that the client trained on."""
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    normalisation: Normalisation
    model_id: str
    """What ``load_model`` was given, for example ``"convnet"``, ``"resnet18"`` or ``"my.module:build"``."""
    weight_hash: str
    """``weight_hash(model)`` of the server's model that the client started from."""
    batch_norm: BatchNormMode
    buffers: dict[str, Tensor] | None
    """Batch-norm running statistics *after* the client's step(s), by buffer name; only with ``train_shared``."""
    kind: UpdateKind = UpdateKind.GRADIENT
    loss: str = "cross_entropy"
    defence: str = "none"
    """What the client says it did to the update before it was sent. Informational: nothing relies on it."""
    local: LocalTraining | None = None
    """The client's local steps; given for a weight delta and for nothing else."""

    def __post_init__(self) -> None:
        _check_facts(self)
        _check_local(self)
        _check_tensors("gradient", self.gradients)
        _check_tensors("buffer", self.buffers or {})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file; a reader sees the old file or the whole new one, never a part.

        Raises:
            UpdateError: The file cannot be written (folder missing, not writable, disk full).
        """
        from .update_file import write_update

        write_update(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CapturedUpdate:
        """Read a file that ``save`` wrote. The file may come from anyone: everything is checked, nothing is executed.

        Raises:
            UpdateError: One sentence that names the file and what is wrong with it.
        """
        from .update_file import read_update

        return read_update(path)

    def mismatches(self, model: nn.Module) -> list[str]:
        """Every way in which this update does not fit the model, one clause each; empty when it fits.

        Args:
            model: The server's model, in the state that the client started from.
        """
        expected = {name: p for name, p in model.named_parameters() if p.requires_grad}
        found = _compare_tensors("gradient", self.gradients, expected)
        if self.buffers is not None:
            running = {
                name: buffer
                for name, buffer in model.named_buffers()
                if name.endswith((".running_mean", ".running_var")) or name in ("running_mean", "running_var")
            }
            sent = {name: buffer for name, buffer in self.buffers.items() if not name.endswith("num_batches_tracked")}
            found += _compare_tensors("batch-norm buffer", sent, running)
        actual = weight_hash(model)
        if actual != self.weight_hash:
            found.append(f"the weight hash is {self.weight_hash[:12]}… in the update and {actual[:12]}… in the model")
        return found

    def require_match(self, model: nn.Module) -> None:
        """Return quietly when the update belongs to this model.

        Raises:
            UpdateError: All mismatches at once.
        """
        found = self.mismatches(model)
        if found:
            listed = "".join(f"\n  - {line}" for line in found)
            raise UpdateError(
                f"the update was made with another model than the one given (it names {self.model_id!r}); "
                f"give that model with the weights the client started from:{listed}"
            )


def weight_hash(model: nn.Module) -> str:
    """SHA-256 (hex) over name, dtype, shape and bytes of every parameter and buffer, in order of name.

    ``num_batches_tracked`` is left out: it counts steps and changes no output.
    """
    digest = hashlib.sha256()
    named: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in sorted(named):
        if name.rpartition(".")[2] == "num_batches_tracked":
            continue
        tensor = named[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _per_channel(values: tuple[float, ...], images: Tensor) -> Float[Tensor, "channel 1 1"]:
    return images.new_tensor(values)[:, None, None]


def _check_facts(update: CapturedUpdate) -> None:
    """Raise UpdateError for counts and shapes that no batch can have."""
    if not 1 <= update.image_count <= LARGEST_IMAGE_COUNT:
        raise UpdateError(f"image_count is {update.image_count}; it must be between 1 and {LARGEST_IMAGE_COUNT}")
    channels, height, width = update.image_shape
    if not 1 <= channels <= LARGEST_CHANNEL_COUNT or not all(1 <= s <= LARGEST_IMAGE_SIDE for s in (height, width)):
        raise UpdateError(
            f"image_shape is {(channels, height, width)}; it must be (channels, height, width) with 1 to "
            f"{LARGEST_CHANNEL_COUNT} channels and sides of 1 to {LARGEST_IMAGE_SIDE} pixels"
        )
    if len(update.normalisation.mean) != channels:
        raise UpdateError(
            f"the normalisation is for {len(update.normalisation.mean)} channels and the images have {channels}; "
            "give one mean and one deviation per channel"
        )
    if not update.gradients:
        raise UpdateError("the update holds no gradient at all; it needs one tensor per trained parameter")
    if update.buffers is not None and update.batch_norm is not BatchNormMode.TRAIN_SHARED:
        raise UpdateError(
            f"the update holds batch-norm buffers although its mode is {str(update.batch_norm)!r}; "
            "only 'train_shared' clients send them"
        )
    if update.buffers is None and update.batch_norm is BatchNormMode.TRAIN_SHARED:
        raise UpdateError(
            "the update's mode is 'train_shared' but it holds no batch-norm buffers; add them, or use 'train_private'"
        )


def _check_local(update: CapturedUpdate) -> None:
    """Raise UpdateError where the kind of the update and its local steps contradict each other."""
    if update.kind is UpdateKind.GRADIENT:
        if update.local is not None:
            raise UpdateError("the update is a gradient and names local steps; only a weight delta has them")
        return
    if update.local is None:
        raise UpdateError(
            "the update is a weight delta and does not tell the client's local steps; give local=LocalTraining(...)"
        )
    update.local.require_images(update.image_count)
    if not any(bool(delta.any()) for delta in update.gradients.values()):
        raise UpdateError(
            "the weight delta is zero everywhere, so the client trained nothing (a learning rate of 0 does this, or a "
            "defence that leaves nothing); there is nothing to attack"
        )


def _check_tensors(kind: str, tensors: dict[str, Tensor]) -> None:
    """Raise UpdateError at the first tensor that is not made of finite numbers."""
    for name, tensor in tensors.items():
        counts_steps = kind == "buffer" and name.rpartition(".")[2] == "num_batches_tracked"
        if not tensor.is_floating_point() and not (counts_steps and tensor.dtype == torch.int64):
            raise UpdateError(f"{kind} {name!r} has type {tensor.dtype}; it must be floating point")
        if not bool(torch.isfinite(tensor).all()):
            raise UpdateError(
                f"{kind} {name!r} holds values that are not finite (NaN or infinity); "
                "capture the update again from a step whose loss is finite"
            )


def _compare_tensors(kind: str, sent: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    found = [f"{kind} {name!r} is missing from the update" for name in _absent(expected, sent)]
    found += [f"{kind} {name!r} is not in the model" for name in _absent(sent, expected)]
    for name in sorted(sent.keys() & expected.keys()):
        ours, theirs = tuple(sent[name].shape), tuple(expected[name].shape)
        if ours != theirs:
            found.append(f"{kind} {name!r} has shape {ours} in the update and {theirs} in the model")
    return found


def _absent(names: Iterable[str], present: Mapping[str, Tensor]) -> list[str]:
    return sorted(name for name in names if name not in present)

"""What the server holds: one client's update and the facts that the client and the server share about it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .counters import is_counter, settle_counters
from .defences import Defence, defence_words
from .errors import UpdateError
from .facts import BatchNormMode, ClientFacts, assumed
from .hashing import weight_hash
from .local_training import LocalTraining
from .normalisation import Normalisation
from .unwrap import inside
from .update_file import read_update, write_update
from .update_kind import UpdateKind
from .weights import fit_names

_MOST_LISTED = 20
_LARGEST_MISSING = 200 * 2**20
LARGEST_IMAGE_COUNT = 65_536
LARGEST_CHANNEL_COUNT = 64
LARGEST_IMAGE_SIDE = 8_192


@dataclass(frozen=True)
class CapturedUpdate:
    """One client's update as an honest-but-curious server receives it. No private image is reachable from here."""

    gradients: dict[str, Tensor]
    """By parameter name, as in ``model.named_parameters()``; for a weight delta the differences of the weights."""
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    model_id: str
    """What ``load_model`` was given, for example ``"convnet"``, ``"resnet18"`` or ``"my.module:build"``."""
    weight_hash: str
    """``weight_hash(model)`` of the server's model that the client started from."""
    facts: ClientFacts
    """What is believed of the client: each fact told, read off the update, or assumed."""
    buffers: dict[str, Tensor] | None = None
    """Batch-norm running statistics *after* the client's step(s), by buffer name; only with ``train_shared``. Step
    counters are int64, and left out where what was given is no count."""
    kind: UpdateKind = UpdateKind.GRADIENT
    step_rate: float | None = None
    """Of a gradient that was read off a weight delta (`as_gradient`): the delta over minus this is what it is, so that
    its entries have the rounding of the weights, over this. None for what was sent as it is, as every file holds it."""

    def __post_init__(self) -> None:
        if self.buffers is not None:
            object.__setattr__(self, "buffers", settle_counters(self.buffers))
        _check_facts(self)
        _check_local(self)
        _check_tensors("gradient", self.gradients)
        _check_tensors("buffer", self.buffers or {})

    def __repr__(self) -> str:
        """What it is, in three lines; the tensors are not among them."""
        numbers = sum(tensor.numel() for tensor in self.gradients.values())
        shape = " x ".join(map(str, self.image_shape))
        assumed = [name for name, fact in self.facts.items() if fact.assumed]
        return (
            f"CapturedUpdate({self.kind} of {self.model_id}: {len(self.gradients)} tensors, {numbers:,} numbers)\n"
            f"  of {self.image_count} images of {shape}, batch norm {self.batch_norm}, loss {self.loss}, "
            f"defences: {defence_words(self.defences)}\n"
            f"  assumed, since nobody told it: {', '.join(assumed) or 'nothing'}"
        )

    @property
    def image_count(self) -> int:
        """B, the number of images that the gradient was averaged over, or that the client trained on."""
        return self.facts.image_count.value

    @property
    def normalisation(self) -> Normalisation:
        """The map from pixels to what the client fed its model."""
        return self.facts.normalisation.value

    @property
    def batch_norm(self) -> BatchNormMode:
        """How the client ran its batch-norm layers."""
        return self.facts.batch_norm.value

    @property
    def loss(self) -> str:
        """The name of the client's loss."""
        return self.facts.loss.value

    @property
    def defences(self) -> tuple[Defence, ...]:
        """What the client did to its update before it was sent, in order; empty: nothing."""
        return self.facts.defences.value

    @property
    def local(self) -> LocalTraining | None:
        """The client's local steps; None for a gradient.

        Of several clients those of one with as large batches as all of them have together: it makes the same first
        step, and later ones nearly the same, while each client's weights have not moved far from the others'.
        """
        if self.facts.local is None:
            return None
        own, clients = self.facts.local.training, self.facts.clients.value
        if own.batch_size is None:
            return own
        # Clients may have fewer images than their batches would hold, or not as many each.
        return replace(own, batch_size=min(own.batch_size * clients, max(own.batch_size, self.image_count)))

    def stating(self, **facts: Any) -> CapturedUpdate:
        """The same update with other facts in place of these; see ``ClientFacts.stating``.

        Raises:
            UpdateError: The facts contradict each other.
        """
        return replace(self, facts=self.facts.stating(**facts))

    def without_buffers(self, why: str) -> CapturedUpdate:
        """The same update as of a client that keeps its batch-norm buffers to itself.

        Args:
            why: What that rests on, a noun phrase.
        """
        kept = assumed(BatchNormMode.TRAIN_PRIVATE, why)
        return replace(self, buffers=None, facts=self.facts.stating(batch_norm=kept))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file; a reader sees the old file or the whole new one, never a part.

        Raises:
            UpdateError: The file cannot be written (folder missing, not writable, disk full).
        """
        write_update(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CapturedUpdate:
        """Read a file that ``save`` wrote. The file may come from anyone: everything is checked, nothing is executed.

        Raises:
            UpdateError: One sentence that names the file and what is wrong with it.
        """
        return read_update(path, cls)

    def fitted(self, model: nn.Module) -> CapturedUpdate:
        """The update under the names of the plain model, where it was made inside a wrapper; else the update itself.

        Its names may all begin with ``module.``, ``_orig_mod.``, ``_module.``, or several of them.

        Args:
            model: Its names, without those of its own wrappers, are the ones that count.
        """
        model = inside(model)
        gradients = fit_names(self.gradients, dict(model.named_parameters()))
        if gradients.keys() == self.gradients.keys():
            return self
        # Names are only ever shortened, and all by the same beginning.
        prefix = next(iter(self.gradients)).removesuffix(next(iter(gradients)))
        buffers = self.buffers
        if buffers is not None:
            buffers = {name.removeprefix(prefix): buffer for name, buffer in buffers.items()}
        theirs = self.weight_hash
        same = theirs in (weight_hash(model), weight_hash(model, prefix))
        return replace(self, gradients=gradients, buffers=buffers, weight_hash=weight_hash(model) if same else theirs)

    def mismatches(self, model: nn.Module) -> list[str]:
        """Every way in which this update does not fit the model, one clause each; empty when it fits.

        Args:
            model: The server's model, in the state that the client started from.
        """
        model = inside(model)
        if (fitted := self.fitted(model)) is not self:
            return fitted.mismatches(model)
        actual = weight_hash(model)
        expected = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if actual == self.weight_hash:
            # Surely this model's: what is missing the client kept to itself, or did not train.
            expected = {name: p for name, p in expected.items() if name in self.gradients}
        found = _compare_tensors("gradient", self.gradients, expected)
        if actual != self.weight_hash:
            found += self.buffer_mismatches(model)
            found.append(f"the weight hash is {self.weight_hash[:12]}… in the update and {actual[:12]}… in the model")
        return found

    def buffer_mismatches(self, model: nn.Module) -> list[str]:
        """Every way in which the batch-norm buffers that came are not those of the model's layers, one clause each.

        Args:
            model: Without wrappers, under whose names the update is (see ``fitted``).
        """
        if self.buffers is None:
            return []
        running = {
            name: buffer
            for name, buffer in model.named_buffers()
            if name.endswith((".running_mean", ".running_var")) or name in ("running_mean", "running_var")
        }
        sent = {name: buffer for name, buffer in self.buffers.items() if not is_counter(name)}
        return _compare_tensors("batch-norm buffer", sent, running)

    def require_match(self, model: nn.Module) -> None:
        """Return quietly when the update belongs to this model.

        Raises:
            UpdateError: The mismatches, twenty of them at most.
        """
        self._require_none(self.mismatches(model))

    def require_shapes(self, model: nn.Module) -> None:
        """As ``require_match``, by the names and shapes of the parameters alone, whose values the model need not have.
        Whether gradients may be missing these do not tell; of more than 200 MiB they may not, since nothing else speaks
        for the size of what would be built.

        Raises:
            UpdateError: The mismatches, twenty of them at most.
        """
        expected = {name: p for name, p in inside(model).named_parameters() if p.requires_grad}
        sent = fit_names(self.gradients, expected)
        missing = sum(p.numel() * p.element_size() for name, p in expected.items() if name not in sent)
        held = {name: p for name, p in expected.items() if name in sent}
        if missing > _LARGEST_MISSING or _compare_tensors("gradient", sent, held):
            self._require_none(_compare_tensors("gradient", sent, expected))

    def _require_none(self, found: list[str]) -> None:
        if not found:
            return
        listed = "".join(f"\n  - {line}" for line in found[:_MOST_LISTED])
        more = f"\n  - and {len(found) - _MOST_LISTED:,} more" if len(found) > _MOST_LISTED else ""
        raise UpdateError(
            f"the update was made with another model than the one given (it names {self.model_id!r}); "
            f"give that model with the weights the client started from:{listed}{more}"
        )


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
    local = update.local
    if local is None:
        raise UpdateError(
            "the update is a weight delta and does not tell the client's local steps; give local=LocalTraining(...)"
        )
    local.require_images(update.image_count)
    if not any(bool(delta.any()) for delta in update.gradients.values()):
        raise UpdateError(
            "the weight delta is zero everywhere, so the client trained nothing (a learning rate of 0 does this, or a "
            "defence that leaves nothing); there is nothing to attack"
        )


def _check_tensors(kind: str, tensors: dict[str, Tensor]) -> None:
    """Raise UpdateError at the first tensor that is not made of finite numbers."""
    for name, tensor in tensors.items():
        counts_steps = kind == "buffer" and is_counter(name)
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

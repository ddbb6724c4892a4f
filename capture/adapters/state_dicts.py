"""Plain PyTorch: the update between two state dicts, from checkpoints or from any framework that sends weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..batch_norm import batch_norm_layers
from ..copying import copy_model
from ..facts import BatchNormMode, Fact, LocalFacts, assumed, read
from ..local_training import LocalTraining
from ..normalisation import Normalisation
from ..statistics_shift import statistics_shift
from ..unwrap import unwrap
from ..update import CapturedUpdate
from ..weight_delta import capture_weight_delta
from ..weights import fit_names, load_state, read_weights

State = Mapping[str, Tensor] | str | os.PathLike[str]
"""Weights by name, or a .safetensors, .pt or .pth file of them."""


def capture_state_dicts(
    model: nn.Module,
    before: State,
    after: State,
    *,
    image_count: int,
    image_shape: tuple[int, int, int],
    local: LocalTraining | LocalFacts,
    normalisation: Normalisation | tuple[Sequence[float], Sequence[float]] | None = None,
    batch_norm: BatchNormMode | str | None = None,
    model_id: str | None = None,
    stated: Mapping[str, Fact[Any]] | None = None,
) -> CapturedUpdate:
    """The weight delta of a client, from the weights that it was sent and those that it sent back.

    Args:
        model: The architecture; its weights do not matter, and are left as they are.
        before: The server's weights and running statistics, whole.
        after: The client's; batch-norm buffers may be missing.
        image_count: How many images the client trained on.
        image_shape: Channels, height, width.
        local: The client's local steps: as the client tells them, or fact by fact.
        normalisation: Mean and deviation per channel; the model was fed ``(images - mean) / std``. None: nobody said,
            and ImageNet's is assumed.
        stated: Further facts about the client by their names in `ClientFacts`; those that are missing are assumed.
        batch_norm: How the client ran batch norm; None to infer it, see `infer_batch_norm`.
        model_id: What ``load_model`` takes to build the model; by default its class.

    Raises:
        ModelError: A file cannot be read, or ``before`` does not fit the model.
        UpdateError: ``after`` does not fit the model, or the facts contradict each other.
    """
    server = copy_model(unwrap(model)).cpu()
    load_state(server, _state(before), _source(before, "the state before training"))
    sent = fit_names(_state(after), server.state_dict())
    return capture_weight_delta(
        server,
        sent,
        image_count=image_count,
        image_shape=image_shape,
        local=local,
        normalisation=normalisation,
        batch_norm=infer_batch_norm(server, sent) if batch_norm is None else batch_norm,
        model_id=model_id or type(server).__name__,
        stated=stated,
    )


def infer_batch_norm(before: nn.Module, after: Mapping[str, Tensor]) -> Fact[BatchNormMode]:
    """How the client ran batch norm, by the running statistics that it sent back.

    They moved, beyond rounding: ``train_shared``, which is read off them. They are the server's: ``eval``, likewise,
    and assumed where they changed by no more than rounding to fewer bits may change them. They are missing:
    ``train_private`` is assumed, since a client in training mode is the rule. Without batch-norm layers it makes no
    difference: ``eval``.

    Args:
        before: The server's model, with the statistics that the client was sent.
        after: What the client sent, by the model's names.
    """
    layers = batch_norm_layers(before)
    if not layers:
        return read(BatchNormMode.EVAL, "the model, which has no batch norm")
    shift = statistics_shift(before, after)
    if shift is None:
        return assumed(BatchNormMode.TRAIN_PRIVATE, "no running statistics came with the weights")
    if shift.unclear:
        return assumed(BatchNormMode.EVAL, "running statistics that changed by no more than rounding may change them")
    if not shift.moved:
        return read(BatchNormMode.EVAL, "running statistics that came back as they were")
    return read(BatchNormMode.TRAIN_SHARED, "running statistics that moved")


def _state(given: State) -> Mapping[str, Tensor]:
    return given if isinstance(given, Mapping) else read_weights(given)


def _source(given: State, otherwise: str) -> str:
    return otherwise if isinstance(given, Mapping) else repr(os.fspath(given))

"""A weight delta: what a client of federated averaging sends after its local steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .batch_norm import running_buffers
from .counters import is_counter, settle_counters
from .errors import UpdateError
from .facts import BatchNormMode, ClientFacts, Fact, LocalFacts, assumed, read, told
from .hashing import weight_hash
from .local_training import LocalTraining
from .normalisation import Normalisation, usual_normalisation
from .statistics_shift import statistics_shift
from .step_count import counted_steps, with_counted_steps
from .unwrap import inside
from .update import CapturedUpdate
from .update_kind import UpdateKind
from .weights import fit_names

_MOST_LISTED = 5


def capture_weight_delta(
    before: nn.Module,
    after: Mapping[str, Tensor] | nn.Module,
    *,
    image_count: int,
    image_shape: tuple[int, int, int],
    local: LocalTraining | LocalFacts,
    normalisation: Normalisation | tuple[Sequence[float], Sequence[float]] | None = None,
    batch_norm: BatchNormMode | str | Fact[BatchNormMode] | None = None,
    model_id: str | None = None,
    stated: Mapping[str, Fact[Any]] | None = None,
) -> CapturedUpdate:
    """The update of a client that trained: its weights after its local steps minus those it started from.

    Args:
        before: The server's model, with the weights and running statistics that the client started from.
        after: The client's model or state dict; names may be those of a wrapper such as DataParallel. Tensors of the
            state dict beyond the model's parameters and batch-norm buffers are not looked at.
        image_count: How many images the client trained on.
        image_shape: Channels, height, width.
        local: The client's local steps: as the client tells them, or fact by fact.
        normalisation: Mean and deviation per channel; the model was fed ``(images - mean) / std``. None: nobody said,
            and ImageNet's is assumed.
        batch_norm: How the client ran its batch-norm layers, and whether it shares their statistics: with
            ``train_shared`` the running buffers in ``after`` become part of the update. None: nobody said, and ``eval``
            is assumed. Statistics in ``after`` that have moved, beyond rounding, are no evaluation mode: whatever was
            said, ``train_shared`` is read off them.
        model_id: What ``load_model`` takes to build the model; by default its class.
        stated: Further facts about the client by their names in `ClientFacts`; those that are missing are assumed.

    Returns:
        The update, on the CPU. Parameters with ``requires_grad=False`` are not part of it.

    Raises:
        UpdateError: Tensors are missing or of another shape, nothing was trained, or the facts contradict each other.
    """
    mode = _mode(batch_norm)
    before = inside(before)
    sent = inside(after).state_dict() if isinstance(after, nn.Module) else after
    state = settle_counters(fit_names(sent, before.state_dict()))
    parameters = {name: p.detach() for name, p in before.named_parameters() if p.requires_grad}
    if not parameters:
        raise UpdateError("the model has no parameter with requires_grad=True, so the client had nothing to train")
    _require_tensors("parameter", state, parameters)
    mode = _shown_mode(mode, before, state)
    buffers = None
    if mode.value is BatchNormMode.TRAIN_SHARED:
        running = running_buffers(before)
        _require_tensors("batch-norm buffer", state, {name: b for name, b in running.items() if not is_counter(name)})
        buffers = {name: state[name].detach().cpu().clone() for name in running if name in state}
    return CapturedUpdate(
        gradients={name: _difference(state[name], weight) for name, weight in parameters.items()},
        image_shape=image_shape,
        model_id=model_id or type(before).__name__,
        weight_hash=weight_hash(before),
        facts=ClientFacts(
            image_count=told(image_count),
            normalisation=_normalisation(normalisation, image_shape[0]),
            batch_norm=mode,
            local=_local(local, image_count, counted_steps(before, buffers or {})),
        ).stating(**(stated or {})),
        buffers=buffers,
        kind=UpdateKind.WEIGHT_DELTA,
    )


def _local(given: LocalTraining | LocalFacts, image_count: int, steps: int | None) -> LocalFacts:
    return with_counted_steps(given if isinstance(given, LocalFacts) else LocalFacts.told(given), image_count, steps)


def _mode(given: BatchNormMode | str | Fact[BatchNormMode] | None) -> Fact[BatchNormMode]:
    if isinstance(given, Fact):
        return given
    return assumed(BatchNormMode.EVAL) if given is None else told(BatchNormMode(given))


def _shown_mode(mode: Fact[BatchNormMode], before: nn.Module, state: Mapping[str, Tensor]) -> Fact[BatchNormMode]:
    """In evaluation mode statistics come back as they were: where they have moved, they say how batch norm ran."""
    shift = statistics_shift(before, state) if mode.value is BatchNormMode.EVAL else None
    if shift is None or not shift.moved:
        return mode
    instead = "" if mode.assumed else f", where {str(mode.value)!r} was told"
    return read(BatchNormMode.TRAIN_SHARED, f"running statistics that moved{instead}")


def _normalisation(
    given: Normalisation | tuple[Sequence[float], Sequence[float]] | None, channels: int
) -> Fact[Normalisation]:
    return assumed(usual_normalisation(channels)) if given is None else told(Normalisation.of(given))


def _difference(after: Tensor, before: Tensor) -> Tensor:
    old = before.cpu()
    return (after.detach().cpu().to(torch.float64) - old.to(torch.float64)).to(old.dtype)


def _require_tensors(kind: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    found = [f"{kind} {name!r} is missing" for name in expected if name not in state]
    found += [
        f"{kind} {name!r} has shape {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if found:
        raise UpdateError(f"the client's weights are not those of the given model: {_listed(found)}")


def _listed(lines: Iterable[str]) -> str:
    lines = list(lines)
    more = f"; and {len(lines) - _MOST_LISTED} more" if len(lines) > _MOST_LISTED else ""
    return "; ".join(lines[:_MOST_LISTED]) + more

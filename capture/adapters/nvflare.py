"""NVIDIA FLARE: the update in an ``FLModel`` that a client sends back. NVFlare itself is not imported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import UpdateError
from ..facts import BatchNormMode, Fact, LocalFacts, assumed
from ..local_training import LocalTraining
from ..normalisation import Normalisation
from ..update import CapturedUpdate
from .facts import Said, local_facts, read_image_count, read_said, within
from .state_dicts import capture_state_dicts

_STEPS = "NUM_STEPS_CURRENT_ROUND"
_DIFFERENCE = "DIFF"


class FLModelLike(Protocol):
    """What is read of ``nvflare.app_common.abstract.fl_model.FLModel``."""

    @property
    def params(self) -> Any:
        """Tensors or NumPy arrays by the names of the state dict."""

    @property
    def params_type(self) -> Any:
        """``FULL``, ``DIFF``, or None, which NVFlare treats as ``FULL``."""

    @property
    def meta(self) -> Any:
        """What else a client says."""


def capture_flmodel(
    model: nn.Module,
    sent: FLModelLike,
    result: FLModelLike,
    *,
    image_shape: tuple[int, int, int],
    image_count: int | None = None,
    count_key: str = "num_examples",
    local: LocalTraining | LocalFacts | None = None,
    normalisation: Normalisation | tuple[Sequence[float], Sequence[float]] | None = None,
    batch_norm: BatchNormMode | str | None = None,
    model_id: str | None = None,
    stated: Mapping[str, Fact[Any]] | None = None,
) -> CapturedUpdate:
    """The weight delta of a client, from the model that it was sent and the one that it sent back.

    In a server's workflow the two are what ``broadcast_model`` or ``send_model`` was given and what comes back, on a
    client what ``flare.receive()`` returns and what goes to ``flare.send()``.

    Args:
        model: The architecture; its weights do not matter, and are left as they are.
        sent: The server's, of the type ``FULL``.
        result: The client's, ``FULL`` or ``DIFF``; batch-norm buffers may be missing.
        image_shape: Channels, height, width.
        image_count: How many images the client trained on; None: what its ``meta`` says under ``count_key``.
        count_key: See above.
        local: The client's local steps; None: what its ``meta`` says under names such as ``lr``, ``local_epochs`` and
            ``batch_size`` (``capture.adapters.facts`` lists all). Epochs that it does not say are taken from
            ``NUM_STEPS_CURRENT_ROUND`` where the batch size is known, and count as assumed: many clients put another
            weight of their result there.
        normalisation: See `capture_state_dicts`; so are the others.

    Raises:
        ModelError: The weights that were sent do not fit the model.
        UpdateError: What came back does not, or does not tell what is needed, in one sentence.
    """
    if _is_difference(sent):
        raise UpdateError("the FLModel that was sent is a difference; give the whole model, of the type FULL")
    before, after = _tensors(sent, "that was sent"), _tensors(result, "that came back")
    if _is_difference(result):
        after = _added(before, after)
    meta = result.meta if isinstance(result.meta, Mapping) else {}
    values = {str(name): value for name, value in meta.items()}
    count = read_image_count(values, count_key) if image_count is None else image_count
    said = read_said([Said("the client's meta", values)], image_shape[0])
    smoothing = {name: said[name] for name in ("label_smoothing",) if name in said}
    if normalisation is None and "normalisation" in said:
        normalisation = said["normalisation"].value
    return capture_state_dicts(
        model,
        before,
        after,
        image_count=count,
        image_shape=image_shape,
        local=within(_with_epochs(local_facts(said), values, count), count) if local is None else local,
        normalisation=normalisation,
        batch_norm=batch_norm,
        model_id=model_id,
        stated={**smoothing, **(stated or {})},
    )


def _is_difference(model: FLModelLike) -> bool:
    return str(getattr(model.params_type, "value", model.params_type)).upper() == _DIFFERENCE


def _tensors(model: FLModelLike, which: str) -> dict[str, Tensor]:
    if not isinstance(model.params, Mapping) or not model.params:
        raise UpdateError(f"the FLModel {which} holds no weights by name; give one whose params are a state dict")
    found = {}
    for name, value in model.params.items():
        try:
            found[str(name)] = torch.as_tensor(value).detach().cpu()
        except (TypeError, ValueError, RuntimeError):
            raise UpdateError(
                f"the FLModel {which} holds a {type(value).__name__} as {str(name)[:80]!r}; it must be a tensor or an "
                "array of numbers"
            ) from None
    return found


def _added(before: Mapping[str, Tensor], difference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    strange = [name for name in difference if name not in before or before[name].shape != difference[name].shape]
    if strange:
        raise UpdateError(
            f"the FLModel that came back has a difference of {strange[0][:80]!r}, which the one that was sent does not "
            "have in this shape; give the model that the client was sent"
        )
    # In float64, and rounded once: a difference that was taken in float32 gives the client's weights again.
    return {name: (before[name].double() + value.double()).to(before[name].dtype) for name, value in difference.items()}


def _with_epochs(local: LocalFacts, meta: Mapping[str, object], image_count: int) -> LocalFacts:
    """With the epochs that so many steps are, where nobody tells them."""
    steps, size = meta.get(_STEPS), local.batch_size
    if not local.epochs.assumed or not isinstance(steps, int) or isinstance(steps, bool) or size.assumed:
        return local
    each = math.ceil(image_count / size.value) if size.value is not None else 1
    if steps < 1 or steps % each:
        return local
    return replace(local, epochs=assumed(steps // each, f"{_STEPS} in the client's meta"))

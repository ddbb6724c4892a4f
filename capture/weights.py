"""Weights from files and state dicts: read without executing anything, named as the model names them, checked first."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..foreign_text import safe
from ..refusal import Refusal
from ..storage.safetensors_reader import FormatError, read_safetensors_file, short
from ..storage.torch_file import OddTensor, TensorPlan, as_mapping, as_tensor, read_torch_file
from .counters import is_counter, settle_counters

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model", "net", "params", "weights")
"""Under which training scripts keep the state dict in a checkpoint, beside the optimiser's state and the like."""
AUXILIARY_HEADS = ("aux1", "aux2", "AuxLogits", "aux_classifier")
"""Of torchvision's and timm's classifiers: they are trained beside the network and play no part in its logits."""
_MOST_LISTED = 20
_MOST_NAMED = 3
_LOG = logging.getLogger(__name__)
_DEEPEST_PREFIX = 4
_DEEPEST_WRAPPER = 3


class ModelError(Refusal, ValueError):
    """A model or weights that cannot be loaded, or a model that cannot be attacked as it is."""


# What a file may name: what tensors and plain containers are made of, and what training scripts keep of their settings.
# None of it is looked up; a file that names anything else was not made for its tensors alone.
_USUAL = re.compile(
    r"collections\.(OrderedDict|Counter|defaultdict)|(builtins|__builtin__)\.(set|bytearray|complex|dict|list|int)"
    r"|_codecs\.encode|argparse\.Namespace|pathlib\.(_local\.)?(Pure)?PosixPath"
    r"|(lightning\.fabric|lightning_fabric)\.utilities\.data\.AttributeDict"
    r"|(pytorch_lightning|lightning\.pytorch)\.utilities\.parsing\.AttributeDict"
    r"|torch\.(\w*Storage|storage\.(Untyped|Typed)Storage|Size|Tensor|device|nn\.parameter\.\w*Parameter)"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2|torch\.serialization\._get_layout"
    r"|torch\.(b?float\w*|u?int\d+|bool|half|double|long|complex\d+|q\w+|per_\w+)"
    r"|torch\.nested\._internal\.nested_tensor\.\w+"
)


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict in a file, under the names that the file gives.

    Args:
        path: A .safetensors, .pt, .pth or .ckpt file: a state dict, or a checkpoint that holds one under one of
            ``WRAPPER_KEYS``, as Lightning's do. Only tensors, plain containers and settings are read; nothing is
            executed.

    Raises:
        ModelError: What is wrong with the file, in one sentence.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ModelError(f"the weights file {str(file)!r} does not exist")
    if file.suffix not in SUFFIXES:
        raise ModelError(f"the weights file {str(file)!r} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    try:
        if file.suffix == ".safetensors":
            return read_safetensors_file(file)
        return read_torch_file(file, partial(_choose, file))
    except ModelError:
        raise
    except (OSError, FormatError, MemoryError) as error:
        reason = str(error) or "there is not enough memory for it"
        raise ModelError(f"the weights file {str(file)!r} is damaged or of another format: {reason}") from error


def _choose(file: Path, content: Any, names: frozenset[str]) -> Mapping[str, TensorPlan]:
    """The state dict in what a file of ``torch.save`` holds."""
    foreign = sorted(name for name in names if not _USUAL.fullmatch(name))
    if foreign:
        raise ModelError(
            f"the weights file {str(file)!r} holds Python objects other than tensors "
            f"({', '.join(map(safe, foreign[:_MOST_NAMED]))}), which are never loaded; save model.state_dict() instead"
        )
    state = _unwrapped(content, _DEEPEST_WRAPPER)
    if state is None:
        raise ModelError(f"the weights file {str(file)!r} holds no state dict; save model.state_dict()")
    odd = {name: plan.kind for name, plan in state.items() if isinstance(plan, OddTensor)}
    if odd:
        name, kind = next(iter(odd.items()))
        raise ModelError(
            f"the weights file {str(file)!r} holds {short(name)}, which is not a plain tensor of real numbers "
            f"({short(kind)}); save it dense, and as float32"
        )
    return {name: plan for name, plan in state.items() if isinstance(plan, TensorPlan)}


def fit_names(state: Mapping[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """The state under the model's names, when it was saved from inside a wrapper.

    DataParallel puts ``module.`` in front of every name, Opacus ``_module.``, ``torch.compile`` ``_orig_mod.``,
    Lightning the name of an attribute. A first part that all names share is taken off, again and again, until names
    are the model's; if they never are, the state is returned as it is.

    Args:
        state: By name.
        expected: The model's own names.
    """
    wanted = set(expected)
    names = {name: name for name in state}
    for _ in range(_DEEPEST_PREFIX + 1):
        if wanted & set(names.values()):
            return {short: state[name] for name, short in names.items()}
        first = {short.partition(".")[0] for short in names.values()}
        if len(first) != 1 or not all("." in short for short in names.values()):
            break
        names = {name: short.partition(".")[2] for name, short in names.items()}
    return dict(state)


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str, what: str = "model") -> tuple[str, ...]:
    """Copy the tensors into the model, all of them or none.

    Published checkpoints hold auxiliary heads (``AUXILIARY_HEADS``) and step counters, and Lightning's what else the
    training had (a loss, metrics), which a model that is built without them does without.

    Args:
        model: Its parameters and buffers must all be in the state, but for ``num_batches_tracked``.
        state: By the model's names, or by those of a wrapper or an attribute around it.
        source: What holds the state, and ``what`` the model is, for the message.

    Returns:
        Names in the state that were left out, sorted.

    Raises:
        ModelError: All wrong tensors at once.
    """
    expected = model.state_dict()
    parts = {name.partition(".")[0] for name in expected}
    found = {
        name: tensor
        for name, tensor in settle_counters(_within_attribute(fit_names(state, expected), expected)).items()
        if name in expected or not (is_counter(name) or _is_auxiliary(name, parts))
    }
    problems = [f"{name!r} is missing" for name in expected if name not in found and not is_counter(name)]
    problems += [f"{name!r} is not in the {what}" for name in found if name not in expected]
    problems += [
        problem
        for name in expected.keys() & found.keys()
        if (problem := _problem(name, found[name], expected[name], what))
    ]
    if problems:
        listed = "".join(f"\n  - {line}" for line in sorted(problems)[:_MOST_LISTED])
        more = f"\n  - and {len(problems) - _MOST_LISTED} more" if len(problems) > _MOST_LISTED else ""
        raise ModelError(f"the weights in {source} do not fit the {what}:{listed}{more}")
    model.load_state_dict(found, strict=False)
    used = {id(tensor) for tensor in found.values()}
    left_out = tuple(sorted(name for name, t in state.items() if id(t) not in used and not is_counter(name)))
    if left_out:
        _LOG.info("Of %s the %s does without %s.", source, what, ", ".join(left_out))
    return left_out


def _within_attribute(state: Mapping[str, Tensor], expected: Iterable[str]) -> Mapping[str, Tensor]:
    """What one attribute holds, where that is the whole model and nothing else is: of a module that trains it."""
    wanted = {name for name in expected if not is_counter(name)}
    if wanted & state.keys():
        return state
    attributes = {name.partition(".")[0] for name in state}
    whole = [
        inner
        for attribute in sorted(attributes)
        if wanted
        <= (
            inner := {n.removeprefix(f"{attribute}."): t for n, t in state.items() if n.startswith(f"{attribute}.")}
        ).keys()
    ]
    return whole[0] if len(whole) == 1 else state


def _is_auxiliary(name: str, parts: set[str]) -> bool:
    """Whether a tensor is of a head that the model, with these parts, is built without."""
    head = name.partition(".")[0]
    return head in AUXILIARY_HEADS and head not in parts


def _problem(name: str, theirs: Tensor, ours: Tensor, what: str) -> str | None:
    if theirs.shape != ours.shape:
        return f"{name!r} has shape {tuple(theirs.shape)} in the file and {tuple(ours.shape)} in the {what}"
    if theirs.is_meta or theirs.layout is not torch.strided or theirs.is_quantized or theirs.is_complex():
        return f"{name!r} is not a plain tensor of real numbers"
    if not bool(torch.isfinite(theirs).all()):
        return f"{name!r} holds values that are not finite"
    return None


def _unwrapped(content: object, depth: int) -> dict[str, TensorPlan | OddTensor] | None:
    held = as_mapping(content)
    if held is None or depth == 0:
        return None
    # What is no text may be nested so deep that its own text cannot be made.
    tensors = {key if isinstance(key, str) else short(key): as_tensor(value) for key, value in held.items()}
    if tensors and all(plan is not None for plan in tensors.values()):
        return {name: plan for name, plan in tensors.items() if plan is not None}
    inner = (held[key] for key in WRAPPER_KEYS if key in held)
    return next((state for value in inner if (state := _unwrapped(value, depth - 1)) is not None), None)

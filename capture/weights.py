"""Weights from files and state dicts: read without executing anything, named as the model names them, checked first."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pt", ".pth")
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model", "net", "params", "weights")
"""Under which training scripts keep the state dict in a checkpoint, beside the optimiser's state and the like."""
_MOST_LISTED = 20
_DEEPEST_PREFIX = 4
_DEEPEST_WRAPPER = 3


class ModelError(ValueError):
    """A model or weights that cannot be loaded."""


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict in a file, under the names that the file gives.

    Args:
        path: A .safetensors, .pt or .pth file: a state dict, or a checkpoint that holds one under one of
            ``WRAPPER_KEYS``. Only tensors and plain containers are read; nothing is executed.

    Raises:
        ModelError: What is wrong with the file, in one sentence.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ModelError(f"the weights file {str(file)!r} does not exist")
    if file.suffix not in SUFFIXES:
        raise ModelError(f"the weights file {str(file)!r} must end in .safetensors, .pt or .pth")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"the weights file {str(file)!r} holds Python objects other than tensors, which are never loaded; "
            "save model.state_dict() instead"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, safetensors.SafetensorError) as error:
        raise ModelError(f"the weights file {str(file)!r} is damaged or of another format ({error})") from error
    state = _unwrapped(content, _DEEPEST_WRAPPER)
    if state is None:
        raise ModelError(f"the weights file {str(file)!r} holds no state dict; save model.state_dict()")
    return state


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


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str, what: str = "model") -> None:
    """Copy the tensors into the model, all of them or none.

    Args:
        model: Its parameters and buffers must all be in the state, but for ``num_batches_tracked``.
        state: By the model's names, or by those of a wrapper around it.
        source: What holds the state, and ``what`` the model is, for the message.

    Raises:
        ModelError: All wrong tensors at once.
    """
    expected = model.state_dict()
    found = fit_names(state, expected)
    optional = {name for name in expected if name.rpartition(".")[2] == "num_batches_tracked"}
    problems = [f"{name!r} is missing" for name in expected if name not in found and name not in optional]
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


def _problem(name: str, theirs: Tensor, ours: Tensor, what: str) -> str | None:
    if theirs.shape != ours.shape:
        return f"{name!r} has shape {tuple(theirs.shape)} in the file and {tuple(ours.shape)} in the {what}"
    if theirs.is_meta or theirs.layout is not torch.strided or theirs.is_quantized or theirs.is_complex():
        return f"{name!r} is not a plain tensor of real numbers"
    if not bool(torch.isfinite(theirs).all()):
        return f"{name!r} holds values that are not finite"
    return None


def _unwrapped(content: object, depth: int) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping) or depth == 0:
        return None
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return {str(key): value for key, value in content.items()}
    inner = (content[key] for key in WRAPPER_KEYS if key in content)
    return next((state for value in inner if (state := _unwrapped(value, depth - 1)) is not None), None)

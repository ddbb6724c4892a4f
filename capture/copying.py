"""Copies of a model, also of one that holds what cannot be copied: locks, open files, its last activations."""

from __future__ import annotations

import copy
import io
import threading
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .weights import ModelError

# What torch itself keeps of a module; its parts are looked at one by one, or are functions.
_OF_TORCH = set(nn.Module().__dict__) - {"_buffers"}
# How deep in lists, dictionaries and objects of the user's own something is looked for.
_DEEPEST = 5
# Weight and spectral norm (legacy) and pruning: their hooks set a plain attribute before each pass, and name it so.
_MAKING_WEIGHTS, _MADE = "torch.nn.utils.", ("name", "_tensor_name")
_NEVER_COPIED = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType)
_LOCKS = (type(threading.Lock()), type(threading.RLock()))
_LONGEST_REASON = 200


class PortableLock:
    """A lock that a copy has of its own, and that arrives elsewhere as a new one, open."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As ``threading.Lock`` has it."""
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        """As ``threading.Lock`` has it."""
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def __reduce__(self) -> tuple[type[PortableLock], tuple[()]]:
        return PortableLock, ()


class SilentText(io.TextIOBase):
    """A file that keeps nothing: a model under attack runs thousands of times, and none of them is news."""

    def writable(self) -> bool:
        """It takes everything."""
        return True

    def write(self, text: str, /) -> int:
        """Forget it."""
        return len(text)

    def __reduce__(self) -> tuple[type[SilentText], tuple[()]]:
        return type(self), ()


class SilentBytes(io.RawIOBase):
    """`SilentText` for bytes."""

    def writable(self) -> bool:
        """It takes everything."""
        return True

    def write(self, content: Any, /) -> int:
        """Forget it."""
        return len(content)

    def __reduce__(self) -> tuple[type[SilentBytes], tuple[()]]:
        return type(self), ()


@dataclass(frozen=True)
class _Odd:
    """Something that a plain copy would stumble over."""

    value: object
    place: str
    """The attribute that holds it, for a message."""
    is_state: bool
    """Whether later passes may read it: a buffer, or a weight that is made before each pass."""


def copy_model(model: nn.Module) -> nn.Module:
    """A copy that computes what the model computes, and that can itself be copied and sent to another process.

    Left out is what no output depends on: activations of an earlier pass (they are those of the client's images),
    where a log goes, and who waits for a lock. Weights that a legacy ``weight_norm`` or ``spectral_norm`` makes before
    each pass are kept as numbers.

    Args:
        model: Left as it is.

    Raises:
        ModelError: It holds something else that cannot be copied; named with what to do.
    """
    empty = torch.empty(0)
    memo: dict[int, Any] = {id(odd.value): _stand_in(odd, empty) for odd in _odd_values(model)}
    try:
        copied = copy.deepcopy(model, dict(memo))
    # The user's own classes may raise anything.
    except Exception as error:
        raise refuse_to_copy(model, lambda value: copy.deepcopy(value, dict(memo)), error) from None
    for module in copied.modules():
        for name, value in list(module.__dict__.items()):
            if value is empty:
                module.__dict__[name] = None
        if parametrize.is_parametrized(module):
            _let_travel(module)
    return copied


def refuse_to_copy(model: nn.Module, attempt: Callable[[object], object], error: Exception) -> ModelError:
    """What to tell of a model that could not be copied or sent: the attribute to blame, and never what it holds.

    Args:
        model: As it was tried.
        attempt: Raises for what cannot be copied.
        error: What was raised for the model as a whole.
    """
    for name, module in model.named_modules():
        for attribute, value in module.__dict__.items():
            if attribute == "_modules":
                continue
            try:
                attempt(value)
            except Exception as cause:
                what = "a hook" if attribute.endswith("_hooks") else f"its attribute {_place(name, attribute)!r}"
                held = "" if attribute.endswith("_hooks") else f" (a {type(value).__name__})"
                return ModelError(
                    f"the model cannot be copied to where the attack runs because of {what}{held}: {_reason(cause)}; "
                    "take it off the model before the attack, which needs weights and layers alone"
                )
    return ModelError(
        f"the model, a {type(model).__name__}, cannot be copied to where the attack runs: {_reason(error)}; give a "
        "plain torch.nn.Module of a class that can be imported"
    )


def _reason(error: Exception) -> str:
    """The kind of an error and its first line, short: what follows may hold numbers of the update."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:_LONGEST_REASON]}" if lines else type(error).__name__


def _odd_values(model: nn.Module) -> Iterator[_Odd]:
    seen: set[int] = {id(module) for module in model.modules()}
    for name, module in model.named_modules():
        made = _made_by_hooks(module)
        for attribute, value in module.__dict__.items():
            if attribute in _OF_TORCH:
                continue
            is_state = attribute in made or attribute == "_buffers"
            yield from _search(value, _place(name, attribute), is_state, seen, _DEEPEST)


def _made_by_hooks(module: nn.Module) -> set[str]:
    """Attributes with weights that are made anew before each pass."""
    hooks = [hook for hook in module._forward_pre_hooks.values() if type(hook).__module__.startswith(_MAKING_WEIGHTS)]
    return {name for hook in hooks for key in _MADE if isinstance(name := getattr(hook, key, None), str)}


def _search(value: object, place: str, is_state: bool, seen: set[int], depth: int) -> Iterator[_Odd]:
    if id(value) in seen or depth == 0:
        return
    seen.add(id(value))
    inner: Iterable[object] = ()
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            yield _Odd(value, place, is_state)
    elif isinstance(value, (*_LOCKS, io.IOBase)):
        yield _Odd(value, place, is_state)
    elif isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, Collection) and not isinstance(value, str | bytes):
        inner = value
    elif hasattr(value, "__dict__") and not isinstance(value, _NEVER_COPIED):
        inner = vars(value).values()
    for one in list(inner):
        yield from _search(one, place, is_state, seen, depth - 1)


def _stand_in(odd: _Odd, empty: Tensor) -> object:
    value = odd.value
    if isinstance(value, Tensor):
        return value.detach().clone() if odd.is_state else empty
    if isinstance(value, _LOCKS):
        return PortableLock()
    assert isinstance(value, io.IOBase)
    if not value.closed and not value.writable():
        raise ModelError(
            f"the model reads from an open file, its attribute {odd.place!r}, which cannot be copied; read it once, "
            "and keep what it says"
        )
    return SilentText() if isinstance(value, io.TextIOBase) else SilentBytes()


def _place(module: str, attribute: str) -> str:
    return f"{module}.{attribute}" if module else attribute


def _let_travel(module: nn.Module) -> None:
    """Let a module with ``torch.nn.utils.parametrize`` be pickled, which torch refuses: it made the class itself."""
    made = type(module)
    if made.__reduce__ is not _reduce_parametrised:
        # A class of its own, so that the model that was copied keeps the one that it has.
        module.__class__ = type(
            made.__name__, (made,), {"__reduce__": _reduce_parametrised, "_plain": made.__bases__[0]}
        )


def _reduce_parametrised(module: Any) -> tuple[Callable[..., nn.Module], tuple[type[nn.Module], dict[str, Any]]]:
    return _rebuild_parametrised, (module._plain, module.__dict__)


def _rebuild_parametrised(plain: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    module = plain.__new__(plain)
    module.__dict__.update(state)
    # What register_parametrization does, less the change of what is parametrised.
    parametrize._inject_new_class(module)
    for name in module.parametrizations:  # type: ignore[union-attr]
        parametrize._inject_property(module, name)
    _let_travel(module)
    return module

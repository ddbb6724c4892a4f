"""What jaxtyping checks in `make test`: the shapes and types of arrays, wherever an annotation states them.

By itself jaxtyping wraps every function of the package, also where annotations state no array, and a function within a
function anew whenever the outer one runs: a fifth of the time of a test. Where nothing is checked nothing is wrapped.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray

_wrap = jaxtyping.jaxtyped
# By module, name and code: equal code may stand under two names.
_states: dict[tuple[str, str, CodeType], bool] = {}


def states_an_array(hint: Any) -> bool:
    """Whether an annotation such as ``tuple[Float[Tensor, "batch"], int]`` has an array in it."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(states_an_array(part) for part in get_args(hint))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its arrays checked, and nothing else: mypy checks the rest, and tests pass stand-ins for it."""
    hints = {name: hint for name, hint in function.__annotations__.items() if states_an_array(hint)}
    if not hints:
        return function
    function.__annotations__ = hints
    return beartype(function)


def has_arrays(defined: Any) -> bool:
    """Whether a function or a dataclass may state an array: yes too where its annotations cannot be read."""
    if dataclasses.is_dataclass(defined):
        return has_arrays(inspect.getattr_static(defined, "__init__"))
    if inspect.isclass(defined) or not inspect.isfunction(defined):
        return True
    key = defined.__module__, defined.__qualname__, defined.__code__
    if key not in _states:
        try:
            hints = get_type_hints(defined, include_extras=True).values()
            _states[key] = any(states_an_array(hint) for hint in hints)
        # Names that are there for mypy alone, and whatever else evaluating an annotation may raise.
        except Exception:
            _states[key] = True
    return _states[key]


def wrap_where_arrays_are_stated(*given: Any, **options: Any) -> Any:
    """In place of `jaxtyping.jaxtyped`, which the package's functions and classes are decorated with on import."""
    if given:
        return _wrap(*given, **options)
    return lambda defined: _wrap(**options)(defined) if has_arrays(defined) else defined


jaxtyping.jaxtyped = wrap_where_arrays_are_stated

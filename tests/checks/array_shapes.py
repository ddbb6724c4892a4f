"""What jaxtyping checks in `make test`: the shapes and types of arrays, wherever an annotation states them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


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

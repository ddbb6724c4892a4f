"""Fully connected layers that a model does not call but whose weights it hands to a function."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def functional_layers_called(model: nn.Module, names: Collection[str] | None = None) -> Iterator[nn.Module]:
    """Turns each ``linear(x, layer.weight, layer.bias)`` into ``layer(x)``, so that the layer's hooks see it.

    The numbers stay the same. A layer that is called as a module is left alone. Not for use from two threads.

    Args:
        model: Any module.
        names: Of the fully connected layers that this is for; None for all.
    """
    layers = {
        id(module.weight): module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and (names is None or name in names)
    }
    running = set[nn.Module]()

    def enter(module: nn.Module, _: object) -> None:
        running.add(module)

    def leave(module: nn.Module, _: object, __: object) -> None:
        running.discard(module)

    handles = []
    for layer in layers.values():
        handles.append(layer.register_forward_pre_hook(enter, prepend=True))
        handles.append(layer.register_forward_hook(leave, always_call=True))
    try:
        with _Calls(layers, running):
            yield model
    finally:
        for handle in handles:
            handle.remove()


class _Calls(TorchFunctionMode):
    def __init__(self, layers: dict[int, nn.Linear], running: set[nn.Module]) -> None:
        super().__init__()
        self._layers, self._running = layers, running

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            inputs, weight, bias = _arguments(*args, **kwargs)
            layer = self._layers.get(id(weight))
            if layer is not None and layer not in self._running and bias is layer.bias:
                return layer(inputs)
        return func(*args, **kwargs)


def _arguments(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """As ``torch.nn.functional.linear`` names them."""
    return input, weight, bias

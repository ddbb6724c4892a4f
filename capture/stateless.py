"""A model run with other parameters and buffers than its own, also where a module or a tensor has several names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def call_with(model: nn.Module, tensors: Mapping[str, Tensor], *arguments: Any) -> Any:
    """What the model gives where these stand for its own; it is left as it was.

    `torch.func.functional_call` puts a tensor in place under every name that it finds, and what it puts back under the
    second name of one module is what it had put there under the first: the model would keep it.

    Args:
        model: Of any kind.
        tensors: By the name under which `named_parameters` or `named_buffers` gives what each stands for: the first one
            where there are several.
        arguments: Of its forward pass.
    """
    first = dict[int, str]()
    whole = dict[str, Tensor]()
    for prefix, module in model.named_modules():
        for name, own in [*module._parameters.items(), *module._buffers.items()]:
            if own is not None:
                full = f"{prefix}.{name}" if prefix else name
                known = first.setdefault(id(own), full)
                if known in tensors:
                    whole[full] = tensors[known]
    return functional_call(model, whole, arguments, tie_weights=False)

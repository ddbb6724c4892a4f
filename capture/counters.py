"""Batch norm's step counters, which change no output and come in every shape and type that a client makes of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_COUNTER = "num_batches_tracked"


def is_counter(name: str) -> bool:
    """Whether this is the name of a step counter."""
    return name.rpartition(".")[2] == _COUNTER


def settle_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with every step counter an int64 of shape (), or left out where it is no count.

    Clients that cast all they send to one type make floats of them, ``torch.Tensor`` of an array without axes makes an
    empty tensor, and an average makes fractions.

    Args:
        tensors: By name; parameters and other buffers pass as they are.
    """
    found = {}
    for name, tensor in tensors.items():
        settled = _count(tensor) if is_counter(name) else tensor
        if settled is not None:
            found[name] = settled
    return found


def _count(tensor: Tensor) -> Tensor | None:
    if tensor.dtype == torch.int64 and tensor.ndim == 0:
        return tensor
    if tensor.numel() != 1 or tensor.is_complex() or tensor.is_meta:
        return None
    value = float(tensor)
    # Beyond this the type no longer holds every whole number, so that it is not known which one was meant.
    largest = 2 / torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 2**53
    if not 0 <= value <= largest or value != round(value):
        return None
    return torch.tensor(int(value), dtype=torch.int64, device=tensor.device)

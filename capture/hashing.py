"""By which a server and an update know that they speak of the same weights."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from .counters import is_counter
from .unwrap import inside


def weight_hash(model: nn.Module, prefix: str = "") -> str:
    """SHA-256 (hex) over name, dtype, shape and bytes of every parameter and buffer, in order of name.

    ``num_batches_tracked`` is left out: it counts steps and changes no output.

    Args:
        model: Wrappers such as DataParallel change nothing.
        prefix: In front of every name, as in files of updates that were made inside a wrapper.
    """
    model = inside(model)
    digest = hashlib.sha256()
    named: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in sorted(named):
        if is_counter(name):
            continue
        tensor = named[name].detach().cpu().contiguous()
        digest.update(f"{prefix}{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

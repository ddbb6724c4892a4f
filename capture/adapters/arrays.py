"""Weights as lists of NumPy arrays, as frameworks send them: decoded safely, then named as the model names them."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..counters import is_counter
from ..errors import UpdateError

_REAL_NUMBERS = "fiub"
_MOST_DIMENSIONS = 8


def decode_array(content: bytes, what: str) -> Tensor:
    """The tensor in the bytes of a .npy file, which may come from anyone: sizes are checked before they are believed.

    Args:
        content: As ``numpy.save`` writes it, without pickled objects.
        what: Names the array in a message.

    Raises:
        UpdateError: One sentence.
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            version
        ]
        shape, column_major, dtype = read_header(file)
    # NumPy parses the header as Python literals, with a tokenizer behind: a hostile one may raise anything.
    except Exception as error:
        raise UpdateError(f"{what} is not an array as numpy.save writes it ({type(error).__name__})") from None
    if dtype.hasobject or dtype.kind not in _REAL_NUMBERS:
        raise UpdateError(f"{what} has type {str(dtype)[:40]}; it must be an array of real numbers")
    held, needed = len(content) - file.tell(), math.prod(shape) * dtype.itemsize
    if len(shape) > _MOST_DIMENSIONS or held != needed or min(shape, default=1) < 0:
        raise UpdateError(f"{what} declares the shape {str(shape)[:60]}, which does not fit its {held:,} bytes")
    values = np.frombuffer(content, dtype=dtype, offset=file.tell()).astype(dtype.newbyteorder("="))
    return torch.from_numpy(values.reshape(shape, order="F" if column_major else "C"))


def name_arrays(arrays: Sequence[Tensor], model: nn.Module, sender: str) -> dict[str, Tensor]:
    """The arrays under the model's names, by their place in the list.

    A list may hold the whole state dict, the state dict without ``num_batches_tracked``, all parameters, or only those
    with ``requires_grad``: whichever its length and its shapes fit, in this order.

    Args:
        arrays: In the order of ``model.state_dict()`` or ``model.parameters()``.
        model: The server's.
        sender: Who sent the list, for the message, such as "client 3".

    Raises:
        UpdateError: No such list has this length, or a shape differs.
    """
    state = model.state_dict()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    lists: list[dict[str, Tensor]] = [
        state,
        {name: value for name, value in state.items() if not is_counter(name)},
        dict(model.named_parameters()),
        dict(trained),
    ]
    fitting = [expected for expected in lists if len(expected) == len(arrays)]
    for expected in fitting:
        if all(_may_be(name, e, a) for (name, e), a in zip(expected.items(), arrays, strict=True)):
            return dict(zip(expected, arrays, strict=True))
    if not fitting:
        allowed = ", ".join(str(length) for length in sorted({len(expected) for expected in lists}))
        raise UpdateError(
            f"{sender} sent {len(arrays)} arrays, and the model has {len(trained)} trained parameters and {len(state)} "
            f"entries in its state dict (lists of {allowed} are understood); give the model that the clients train"
        )
    place, name = next(
        (place, name) for place, (name, e) in enumerate(fitting[0].items()) if not _may_be(name, e, arrays[place])
    )
    raise UpdateError(
        f"{sender} sent an array of shape {tuple(arrays[place].shape)} at place {place}, where the model has {name!r} "
        f"of shape {tuple(fitting[0][name].shape)}; give the model that the clients train"
    )


def _may_be(name: str, expected: Tensor, array: Tensor) -> bool:
    """Whether an array can be this entry; a step counter comes in every shape that clients make of it."""
    return array.shape == expected.shape or (is_counter(name) and array.numel() <= 1)

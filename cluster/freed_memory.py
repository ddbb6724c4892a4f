"""Memory that a process has freed goes back to the machine, in processes that are to be small rather than quick."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# Of glibc's malloc.h, for mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# Tensors from this size on are mapped each on its own. By default the C library raises the limit to 32 MiB once one
# as large was freed, and what a network's layers took stays with the process.
_OWN_MAPPING_BYTES = 8 * 2**20
# That the heap keeps at its end: 128 KiB as soon as the limit above is set, and each step down and up costs.
_SPARE_BYTES = 64 * 2**20
# Of the stocks of free memory that threads would have of their own, 64 MiB each.
_ARENAS = 2


def give_back_what_is_freed() -> bool:
    """From here on large tensors of this process are given back to the machine when they are freed.

    Each costs the machine new pages when it is made, so that an agent, which makes the same ones in every step, is
    better off without.

    Returns:
        Whether the C library can be told; only glibc's can.
    """
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    wanted = {_M_MMAP_THRESHOLD: _OWN_MAPPING_BYTES, _M_TRIM_THRESHOLD: _SPARE_BYTES, _M_ARENA_MAX: _ARENAS}
    done = [bool(mallopt(option, value)) for option, value in wanted.items()]
    return all(done)


def give_back_now() -> None:
    """What small tensors and objects left free between others goes back too, where the C library can do that."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None

"""Making seeds comparable: candidates of several seeds are registered to each other and averaged to one consensus.

Tensors in, tensors out. Reading order: `register` (the whole), `schedule` (rounds and levels), `target` and
`coarse` (homographies), `fine` (dense flow), `guard` (when not to believe a warp), `consensus` and `coherence` (the
average, and what of it the seeds share), `pictures` (what changed).
"""

from __future__ import annotations

from .candidates import LeftOut
from .config import RegistrationConfig, RegistrationError
from .consensus import Consensus
from .pictures import Change, change, flow_picture
from .register import register

__all__ = [
    "Change",
    "Consensus",
    "LeftOut",
    "RegistrationConfig",
    "RegistrationError",
    "change",
    "flow_picture",
    "register",
]

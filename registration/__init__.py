"""Making seeds comparable: candidates of several seeds are registered to each other and averaged to one consensus.

Tensors in, tensors out. Reading order: `register` (the whole), `schedule` (rounds and levels), `target` and
`coarse` (homographies), `fine` (dense flow), `guard` (when not to believe a warp), `consensus` (the average).
"""

from __future__ import annotations

from .config import RegistrationConfig, RegistrationError
from .consensus import Consensus
from .register import register

__all__ = ["Consensus", "RegistrationConfig", "RegistrationError", "register"]

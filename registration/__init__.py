"""Making seeds comparable: candidates of several seeds are registered to each other and averaged to one consensus.

Tensors in, tensors out. Read `register` (the schedule), then `coarse` (homographies), `fine` (dense flow), `guard`
(when not to believe a warp) and `consensus` (the average).
"""

from __future__ import annotations

from .config import RegistrationConfig, RegistrationError
from .consensus import Consensus
from .register import register

__all__ = ["Consensus", "RegistrationConfig", "RegistrationError", "register"]

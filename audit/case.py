"""One update under audit: what the attack is given, and what its result is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..capture import CapturedUpdate, ClientConfig, ImageError, PrivateBatch
from ..capture.fitting import fit
from ..coordinator import AttackConfig
from ..plugins import Plugin
from .config import AuditConfig
from .identification import Embedding, make_embedding
from .pool import Pool, draw_batch, load_pool
from .sending import Send
from .truth import tell_truth


@dataclass(frozen=True)
class Case:
    """What the server holds, and for the audit alone what it is of. What is derived here is made once, when it is first
    wanted."""

    update: CapturedUpdate
    """Under the names of the model."""
    model: nn.Module
    """Out of its wrappers."""
    attack: AttackConfig
    """The settings of the attack."""
    private: PrivateBatch | None
    """None where there is no ground truth."""
    send: Send
    """What the same client would have sent for other images."""
    client: ClientConfig = field(default_factory=ClientConfig)
    """How the update was made, as far as that is known."""
    audit: AuditConfig = field(default_factory=AuditConfig)
    """What the result is compared with."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Everything that the run was asked for, as plain values: the report tells it."""
    command: str = ""
    """What runs it again, as one would type it; empty where it was made by hand."""
    plugins: tuple[Plugin, ...] = ()
    """Code of the user's own that the run calls: the report names it."""
    captured: bool = False
    """Whether the update came from outside, so that the images told to be behind it may be others."""

    def __post_init__(self) -> None:
        # Once for a case made by hand too: what measures the update asks for its parameters under the model's names.
        update, model = fit(self.update, self.model)
        object.__setattr__(self, "update", update)
        object.__setattr__(self, "model", model)

    @property
    def pool(self) -> Pool | None:
        """Other images; None where none are wanted, nothing can be compared with them, or they cannot be had."""
        return self._pool if isinstance(self._pool, Pool) else None

    @property
    def pool_problem(self) -> str:
        """Why the pool that is wanted cannot be had, in one sentence; else empty."""
        return str(self._pool) if isinstance(self._pool, ImageError) else ""

    @cached_property
    def _pool(self) -> Pool | ImageError | None:
        if self.audit.pool is None or self.private is None:
            return None
        try:
            return load_pool(self.audit.pool, self.private)
        except ImageError as error:
            return error

    @cached_property
    def embedding(self) -> Embedding:
        """The features by which images are identified, tried on one image of the batch's size.

        Raises:
            LpipsError, ValueError: They cannot be had, or take no images of this size.
        """
        embedding = make_embedding(
            self.audit.embedding,
            model=self.model,
            normalisation=self.update.normalisation,
            lpips_weights=self.audit.lpips_weights,
        )
        embedding.embed(torch.zeros(1, *self.update.image_shape))
        return embedding

    @cached_property
    def evidence(self) -> str:
        """Whether the private images are those behind the update, in a sentence that can be told before the attack;
        empty where they must be, or there are none."""
        if not self.captured or self.private is None:
            return ""
        return tell_truth(self.model, self.private, self.update)

    def require_comparisons(self) -> None:
        """Refuse what the audit needs and cannot have, before hours of work and not after them.

        Raises:
            ImageError, LpipsError, ValueError: What cannot be had, in one sentence.
        """
        if isinstance(self._pool, ImageError):
            raise self._pool
        if self.pool is not None and self.private is not None and "other_images" in self.audit.controls:
            draw_batch(self.pool, self.private)
        _ = self.embedding

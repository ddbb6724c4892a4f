"""From what a run produced and its settings to the audit report."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..capture import CapturedUpdate, ClientConfig, PrivateBatch
from ..capture.facts import CROSS_ENTROPY
from ..capture.fitting import fit
from ..coordinator import Reconstruction
from .config import AuditConfig
from .controls import Control
from .evaluate import evaluate
from .exposure import measure_exposure
from .features import measure_feature_leak
from .identification import Embedding, make_embedding
from .initialisation import judge_weights
from .pool import Pool
from .results import AuditReport
from .truth import believed_update, measure_truth_gap


def judge(
    reconstruction: Reconstruction,
    update: CapturedUpdate,
    model: nn.Module,
    private: PrivateBatch | None,
    *,
    client: ClientConfig,
    settings: AuditConfig,
    controls: Sequence[Control] = (),
    pool: Pool | None = None,
) -> AuditReport:
    """`evaluate` with all that the settings of a run ask for.

    Args:
        reconstruction: of the attack.
        update: that was attacked.
        model: that the update belongs to.
        private: the private batch, or None when there is no ground truth.
        client: how the update was made.
        settings: of the audit.
        controls: that were run.
        pool: other images, or None.

    Raises:
        ValueError, LpipsError: see `evaluate` and `embedding_for`.
    """
    update, model = fit(update, model)
    known = reconstruction.known
    return evaluate(
        reconstruction,
        private,
        weights=judge_weights(model, client, update.image_shape[-1]),
        lpips_weights=settings.lpips_weights,
        controls=tuple(controls),
        pool=pool,
        embedding=embedding_for(settings, update, model),
        exposure=None if private is None or update.loss != CROSS_ENTROPY else measure_exposure(model, private, update),
        truth_gap=None
        if private is None
        else measure_truth_gap(model, private, believed_update(model, private, update)),
        features=None
        if private is None or known is None
        else measure_feature_leak(model, private, update, known, pool),
    )


def embedding_for(settings: AuditConfig, update: CapturedUpdate, model: nn.Module) -> Embedding:
    """The features by which images are identified, tried on one image of the batch's size.

    Raises:
        LpipsError, ValueError: They cannot be had, or take no images of this size.
    """
    embedding = make_embedding(
        settings.embedding, model=model, normalisation=update.normalisation, lpips_weights=settings.lpips_weights
    )
    embedding.embed(torch.zeros(1, *update.image_shape))
    return embedding

"""From what an attack produced and the case it is of to the audit report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..capture.facts import CROSS_ENTROPY
from ..coordinator import Reconstruction
from .case import Case
from .controls import Control
from .evaluate import evaluate
from .exposure import Exposure, measure_exposure
from .feature_leak import FeatureLeak
from .features import measure_feature_leak
from .initialisation import weight_state
from .results import AuditReport, UsedPlugin
from .truth import measure_truth_gap


def judge(reconstruction: Reconstruction, case: Case, controls: Sequence[Control] = ()) -> AuditReport:
    """`evaluate` with all that the settings of a case ask for.

    Args:
        reconstruction: of the attack.
        case: that was attacked.
        controls: that were run.

    Raises:
        ValueError, LpipsError: see `evaluate` and `Case.embedding`.
    """
    report = evaluate(
        reconstruction,
        case.private,
        weights=weight_state(case.model, case.client, case.update.image_shape[-1]),
        lpips_weights=case.audit.lpips_weights,
        controls=tuple(controls),
        pool=case.pool,
        embedding=case.embedding,
        exposure=_exposure(case),
        truth_gap=_truth_gap(reconstruction, case),
        features=_features(reconstruction, case),
    )
    plugins = tuple(UsedPlugin(one.kind.value, one.name, one.source) for one in case.plugins)
    return replace(report, plugins=plugins)


def _exposure(case: Case) -> Exposure | None:
    if case.private is None or case.update.loss != CROSS_ENTROPY:
        return None
    return measure_exposure(case.model, case.private, case.update)


def _truth_gap(reconstruction: Reconstruction, case: Case) -> float | None:
    if case.private is None:
        return None
    return measure_truth_gap(case.model, case.private, reconstruction.belief.of(case.update))


def _features(reconstruction: Reconstruction, case: Case) -> FeatureLeak | None:
    if case.private is None or reconstruction.known is None:
        return None
    return measure_feature_leak(case.model, case.private, case.update, reconstruction.known, case.pool)

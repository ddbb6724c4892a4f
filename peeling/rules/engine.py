"""Rules asked in turn until nothing more follows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..graph import Graph, Node
from ..local_steps import LocalSteps
from ..refusals import Refused
from .batch_statistics import derivatives_behind_statistics
from .column_input import column_input
from .convolution_input import convolution_input
from .effort import Effort
from .grouped_input import grouped_input
from .inverted_input import inverted_input
from .knowledge import Knowledge
from .mended_units import mended_units
from .open_units import open_units
from .output_derivative import RULE as DERIVATIVE
from .output_derivative import output_derivative
from .passing import backwards, derivatives, derivatives_forwards, forwards
from .row_foothold import row_foothold
from .rule import Derived, Rule, Setting
from .segment_input import segment_input
from .shut_elsewhere import shut_elsewhere
from .statistics_again import statistics_again
from .statistics_input import statistics_input
from .statistics_joint_input import statistics_joint_input
from .step_weights import step_scales, step_weights
from .tap_foothold import few_enough, has_taps, tap_foothold
from .visit_foothold import visit_foothold

# Units are mended before anything rests on them; then the cheapest first: what follows by itself is not solved for.
RULES: tuple[Rule, ...] = (
    mended_units,
    statistics_again,
    step_weights,
    derivatives,
    derivatives_forwards,
    derivatives_behind_statistics,
    open_units,
    backwards,
    forwards,
    shut_elsewhere,
    step_scales,
    output_derivative,
    convolution_input,
    grouped_input,
    statistics_input,
    column_input,
    tap_foothold,
    visit_foothold,
    row_foothold,
    statistics_joint_input,
    inverted_input,
    segment_input,
)


@dataclass(frozen=True)
class Step:
    """One thing that was recovered by a gradient."""

    rule: str
    value: str
    shape: tuple[int, ...]
    """Of one image."""
    error: tuple[float, ...]
    """Estimated, relative, of each image."""
    checks: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Derivation:
    """All that follows from a gradient, and how."""

    graph: Graph
    knowledge: Knowledge
    steps: tuple[Step, ...] = ()
    refused: tuple[Refused, ...] = field(default=())
    """What was tried and is not believed, and nothing later changed that."""


def derive(
    graph: Graph,
    gradients: Mapping[str, Tensor],
    image_count: int,
    tolerance: float,
    on_step: Callable[[Step, Knowledge], None] | None = None,
    operations: float = math.inf,
    steps: LocalSteps | None = None,
    step_rate: float | None = None,
) -> Derivation:
    """Everything that the rules find from one foothold: where they end at pooling, from another one in front of it.

    From the foothold nearest to the images all values behind it follow by running the network.

    Args:
        graph: The network.
        gradients: Captured, by parameter.
        image_count: Of the batch.
        tolerance: The largest estimated relative error of what is believed.
        on_step: Called after each thing that was recovered.
        operations: Floating-point operations that it may cost; what is more is left out.
        steps: Of a weight delta; then images are visits (see `Setting`).
        step_rate: Of a gradient that was read off the weight delta of one step.
    """
    setting = Setting(graph, gradients, image_count, tolerance, Effort(operations), steps, step_rate)
    found = _derive(setting, on_step)
    for node in graph.nodes:
        if not _is_nearer(setting, found, node):
            continue
        other = _derive(replace(setting, foothold=node.name), on_step)
        if other.steps:
            return other
    return found


def _is_nearer(setting: Setting, found: Derivation, node: Node) -> bool:
    """Whether a convolution's taps are another foothold, in front of all that was found."""
    if not found.steps or not has_taps(setting, node) or not few_enough(setting, node):
        return False
    value, known = node.inputs[0], found.knowledge
    if known.complete(value) is not None:
        return False
    return all(value in setting.graph.before(step.value) for step in found.steps)


def _derive(setting: Setting, on_step: Callable[[Step, Knowledge], None] | None) -> Derivation:
    """From one foothold."""
    graph, known, steps = setting.graph, Knowledge(), list[Step]()
    refused: dict[tuple[str, str], Refused] = {}
    began = time.perf_counter()
    while True:
        found = _next(setting, known, refused)
        if found is None:
            break
        known = found.knowledge
        if found.notable:
            step = _step(graph, found, time.perf_counter() - began)
            steps.append(step)
            refused = {key: one for key, one in refused.items() if one.value != found.value}
            if on_step is not None:
                on_step(step, known)
            began = time.perf_counter()
    return Derivation(graph, known, tuple(steps), tuple(one for one in refused.values() if not _later(one, known)))


def _later(refused: Refused, known: Knowledge) -> bool:
    """Whether what a rule refused became known in another way."""
    if refused.rule == DERIVATIVE:
        return refused.value in known.arriving
    return known.complete(refused.value) is not None


def _next(setting: Setting, known: Knowledge, refused: dict[tuple[str, str], Refused]) -> Derived | None:
    """The first thing that a rule derives; what it refuses on the way is noted."""
    for rule in RULES:
        for found in rule(setting, known):
            if isinstance(found, Derived):
                return found
            refused[found.rule, found.value] = found
    return None


def _step(graph: Graph, found: Derived, seconds: float) -> Step:
    activations = found.knowledge.activations[found.value]
    error = tuple(float(one) for one in activations.error)
    return Step(found.rule, found.value, graph.shape(found.value), error, found.checks, seconds)

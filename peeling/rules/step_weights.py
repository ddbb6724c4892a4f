"""The rules that give a parameter's values before each step of a weight delta, from the steps' own gradients.

Each step's gradient of a parameter follows from what entered its operation in the visits of that step and from the
derivative by what left it, and the weights before every step from these (`LocalSteps`).

- A weight, where input and derivative are known; a shift, where the derivative is.
- The scale of a batch norm also by its output, where that is known wherever the derivative is not zero: ``dL/dscale =
  sum c (y - shift) / scale``, step after step; and by the derivative in front of it, ``c = d s / scale``.
- The scale of a batch norm behind a convolution whose input is not known: by fixed point. With scales near the true
  ones the convolution's gradient gives its input, this the normalised output, and this the scales; a round makes them
  10 to 10,000 times better, since one step moves a scale by little.

Each is made again of activations and derivatives that are off by their errors: later visits rest on the earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..graph import Node
from ..kinds import BatchNorm, BatchStatisticsNorm, Convolution, Linear, Needs, Sum
from ..local_steps import LocalSteps
from .equations import OVERDETERMINED, affordable, gradient_equations, operations_of, solve
from .knowledge import Knowledge, Known
from .rule import Derived, Setting

# Rounds of the fixed point; the change of a scale at which it has ended, and by how much each round must lessen it.
_ROUNDS, _SETTLED, _LESS = 12, 1e-10, 0.7
# Scales below this share of the largest are not divided by.
_SILENT = 1e-6


def step_weights(setting: Setting, known: Knowledge) -> Iterator[Derived]:
    """Weights and shifts of every operation whose steps' gradients follow."""
    if setting.steps is None:
        return
    for node in setting.graph.nodes:
        if not isinstance(node.kind, Convolution | Linear | BatchNorm | BatchStatisticsNorm):
            continue
        for role in ("bias", "weight"):
            name = _unknown(setting, known, node, role)
            found = None if name is None else _direct(setting, setting.steps, known, node, role)
            if name is not None and found is not None:
                instead = _direct(setting, setting.steps, known.shaken, node, role)
                assert instead is not None
                yield Derived("step weights", node.name, known.with_weights(name, found, instead))


def step_scales(setting: Setting, known: Knowledge) -> Iterator[Derived]:
    """Scales of batch norms whose input is not known."""
    if setting.steps is None:
        return
    for node in setting.graph.nodes:
        normalises = isinstance(node.kind, BatchNorm | BatchStatisticsNorm)
        name = _unknown(setting, known, node, "weight") if normalises else None
        if name is None:
            continue
        # The others take the derivative in front for the one behind times a number.
        ways = (_by_output, _by_derivative_before, _by_fixed_point)
        for way in ways if isinstance(node.kind, BatchNorm) else ways[:1]:
            found = way(setting, setting.steps, known, node)
            if found is not None:
                instead = way(setting, setting.steps, known.shaken, node)
                if instead is not None:
                    yield Derived("step scales", node.name, known.with_weights(name, found, instead))
                    break


def _unknown(setting: Setting, known: Knowledge, node: Node, role: str) -> str | None:
    """Name of a parameter that the client trained and whose values are not known."""
    name = node.tensors.get(role)
    if name is None or name not in setting.gradients or name in known.weights:
        return None
    return name if name in setting.graph.trained else None


def _complete(found: Known | None) -> Tensor | None:
    return found.values if found is not None and found.complete else None


def _arriving(steps: LocalSteps, known: Knowledge, value: str) -> list[Tensor] | None:
    """The derivative of each step's own mean loss."""
    arriving = _complete(known.arriving.get(value))
    if arriving is None:
        return None
    return [arriving[visits] / count for visits, count in zip(steps.slices, steps.counts.tolist(), strict=True)]


def _direct(setting: Setting, steps: LocalSteps, known: Knowledge, node: Node, role: str) -> Tensor | None:
    arriving, tensors = _arriving(steps, known, node.name), setting.graph.tensors_of(node)
    entering = known.complete(node.inputs[0])
    if arriving is None or (entering is None and role == "weight"):
        return None
    shape = (steps.visit_count, *setting.graph.shape(node.inputs[0]))
    values = torch.zeros(shape, dtype=torch.float64) if entering is None else entering.values
    # The operation is linear in its parameters, so that their derivative does not depend on them.
    gradients = [
        node.kind.gradients(derivative, [values[visits]], tensors, [role])[0]
        for derivative, visits in zip(arriving, steps.slices, strict=True)
    ]
    return steps.every(tensors[role], gradients)


def _by_output(setting: Setting, steps: LocalSteps, known: Knowledge, node: Node) -> Tensor | None:
    """From the output where the derivative is not zero."""
    arriving, output = _arriving(steps, known, node.name), _output_where_open(setting, known, node.name)
    shift = known.weights.get(node.tensors.get("bias", ""))
    if arriving is None or output is None or shift is None:
        return None
    scale = setting.graph.tensors_of(node)["weight"]
    gradients: list[Tensor] = []
    for step, (derivative, visits) in enumerate(zip(arriving, steps.slices, strict=True)):
        now = steps.weights(scale, gradients)
        if not bool((now.abs() > _SILENT * now.abs().max()).all()):
            return None
        normalised = output[visits] - shift[step].reshape(-1, 1, 1)
        gradients.append((derivative * normalised).sum(dim=(0, 2, 3)) / now)
    return steps.every(scale, gradients)


def _output_where_open(setting: Setting, known: Knowledge, value: str) -> Tensor | None:
    """A value as the rectifier behind it has it, right wherever that was open; None where none is reached."""
    whole = known.complete(value)
    if whole is not None:
        return whole.values
    readers = setting.graph.readers(value)
    if len(readers) != 1 or readers[0].inputs.count(value) != 1:
        return None
    (reader,) = readers
    if reader.kind.needs is Needs.OUTPUT:
        found = known.complete(reader.name)
        return None if found is None or reader.name not in known.units else found.values
    if not isinstance(reader.kind, Sum):
        return None
    total = _output_where_open(setting, known, reader.name)
    others = [known.complete(name) for name in reader.inputs if name != value]
    if total is None or any(one is None for one in others):
        return None
    return total - sum(one.values for one in others if one is not None)


def _by_derivative_before(setting: Setting, steps: LocalSteps, known: Knowledge, node: Node) -> Tensor | None:
    """From the input, and the derivative by it that comes through this batch norm alone."""
    entering, value = known.complete(node.inputs[0]), node.inputs[0]
    before = _arriving(steps, known, value)
    if entering is None or before is None or setting.graph.readers(value) != (node,):
        return None
    assert isinstance(node.kind, BatchNorm)
    tensors = setting.graph.tensors_of(node)
    gradients: list[Tensor] = []
    for derivative, visits in zip(before, steps.slices, strict=True):
        now = steps.weights(tensors["weight"], gradients)
        told = node.kind.carried(derivative, torch.zeros_like(derivative), tensors | {"weight": now})
        if told is None or not bool(told.heard.all()):
            return None
        gradients += node.kind.gradients(told.values, [entering.values[visits]], tensors, ["weight"])
    return steps.every(tensors["weight"], gradients)


def _by_fixed_point(setting: Setting, steps: LocalSteps, known: Knowledge, node: Node) -> Tensor | None:
    """From the gradient of the convolution in front."""
    convolution, arriving = setting.graph.by_name.get(node.inputs[0]), _arriving(steps, known, node.name)
    if convolution is None or arriving is None or setting.graph.readers(convolution.name) != (node,):
        return None
    kind, gradient = convolution.kind, setting.gradient(convolution.name, "weight")
    if not isinstance(kind, Convolution) or gradient is None or "bias" in convolution.tensors:
        return None
    channels, height, width = setting.graph.shape(convolution.inputs[0])
    entering, places = known.complete(convolution.inputs[0]), steps.visit_count * height * width
    rows = gradient.shape[0] * kind.kernel[0] * kind.kernel[1]
    if entering is None and (rows < OVERDETERMINED * places or not affordable(kind, places, gradient.shape[0])):
        return None
    if not setting.effort.affords(_ROUNDS * operations_of(places, rows, channels)):
        return None
    norm, weight = setting.graph.tensors_of(node), setting.graph.tensors_of(convolution)["weight"]
    scales, before = torch.stack([norm["weight"]] * steps.count), float("inf")
    for _ in range(_ROUNDS):
        derivatives = [_through(node, one, norm, scale) for one, scale in zip(arriving, scales, strict=True)]
        values = None if entering is None else entering.values
        if values is None:
            values = _input(kind, (height, width), gradient, derivatives, steps)
        if values is None:
            return None
        found = _scales(steps, node, convolution, values, derivatives, arriving, norm, weight)
        change, scales = float((found - scales).abs().max() / norm["weight"].abs().max()), found
        if change < _SETTLED or change > _LESS * before:
            break
        before = change
    return scales


def _through(node: Node, arriving: Tensor, norm: dict[str, Tensor], scale: Tensor) -> Tensor:
    return node.kind.cotangents(arriving, [arriving], norm | {"weight": scale})[0]


def _input(
    kind: Convolution, size: tuple[int, int], gradient: Tensor, derivatives: Sequence[Tensor], steps: LocalSteps
) -> Tensor | None:
    """Of the convolution, by its gradient alone."""
    counted = torch.cat([count * one for count, one in zip(steps.counts.tolist(), derivatives, strict=True)])
    solution = solve([gradient_equations(kind, size, gradient, counted)])
    if solution is None:
        return None
    return solution.values.reshape(steps.visit_count, *size, -1).permute(0, 3, 1, 2).contiguous()


def _scales(
    steps: LocalSteps,
    node: Node,
    convolution: Node,
    values: Tensor,
    derivatives: Sequence[Tensor],
    arriving: Sequence[Tensor],
    norm: dict[str, Tensor],
    weight: Tensor,
) -> Tensor:
    """Before each step, with the convolution's own weights before each step."""
    weights: list[Tensor] = []
    scales: list[Tensor] = []
    for derivative, outer, visits in zip(derivatives, arriving, steps.slices, strict=True):
        now = steps.weights(weight, weights)
        output = convolution.kind.forward([values[visits]], {"weight": now})
        weights += convolution.kind.gradients(derivative, [values[visits]], {"weight": now}, ["weight"])
        scales += node.kind.gradients(outer, [output], norm, ["weight"])
    return steps.every(norm["weight"], scales)

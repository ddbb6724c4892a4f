"""A second look at a graph: what its operations do in closed form must be what the model does.

On random images the exported operations are run one after another and differentiated, and so is the model itself. An
operation whose closed form gives another value, another derivative by what enters, or another derivative by its
parameters than the exported one is not crossed; nor is one whose parameter's gradient is another in the model, as a
hook, a function with a derivative of its own or a ``detach`` may make it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...capture import BatchNormMode, client_mode
from ...capture.forward import functions_of, gradient, on_probes
from ..kinds import Opaque
from ..layers import agree
from .nodes import Graph, Node, NoGraph
from .pooling_first import pooled_first
from .thinning import thinned
from .tracing import Traced, trace

# Two images: batch norm in train mode refuses one value per feature, and one of a batch is easily built in.
_PROBE_IMAGES = 2


def network_graph(
    model: nn.Module, image_shape: Sequence[int], mode: BatchNormMode, image_count: int
) -> Graph | NoGraph:
    """The model's graph, every operation confirmed or opaque, without places that nothing reads.

    Args:
        model: On any device; it is not changed.
        image_shape: Channels, height and width.
        mode: How the client ran batch norm.
        image_count: Of the client's batch; asked where the model takes no two images.

    Raises:
        ModelError: The model takes neither two images nor the client's batch, or has no gradient.
    """

    def run(count: int) -> Tensor:
        images = _probe(model, image_shape, count)
        with client_mode(model, mode), torch.no_grad():
            logits = model(images.clone())
        if isinstance(logits, Tensor) and logits.shape[:1] != (count,):
            raise ValueError(f"{count} images give {logits.shape[0]} rows of logits")
        return images

    images = on_probes(run, image_shape, _PROBE_IMAGES, image_count)
    found = trace(model, images, mode)
    if isinstance(found, NoGraph):
        return found
    confirmed = confirm(found, model, images, mode)
    return confirmed if isinstance(confirmed, NoGraph) else pooled_first(thinned(confirmed))


def _probe(model: nn.Module, image_shape: Sequence[int], count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *image_shape, generator=generator).to(next(model.parameters()))


@dataclass(frozen=True)
class _Run:
    """The exported operations on the probe."""

    output: Tensor
    """Logits."""
    differences: Mapping[str, str | None]
    """What each operation at which a derivative arrives does otherwise than its kind, by name; None where nothing."""
    gradients: Mapping[str, Tensor]
    """Derivative by each trained parameter, by name."""


def confirm(traced: Traced, model: nn.Module, images: Tensor, mode: BatchNormMode) -> Graph | NoGraph:
    """The graph with every operation opaque that does not do what its kind says.

    Args:
        traced: From `trace`, of this model and as many images.
        model: It is not changed.
        images: The probe.
        mode: How the client ran batch norm.

    Raises:
        ModelError: The model's gradient cannot be taken.
    """
    names = sorted(name for name, tensor in traced.graph.tensors.items() if tensor.requires_grad)
    parameters = [traced.graph.tensors[name] for name in names]
    with torch.enable_grad():
        with client_mode(model, mode):
            logits = model(images.clone())
        if not isinstance(logits, Tensor) or not logits.requires_grad:
            return NoGraph("the model's output does not depend on its parameters")
        generator = torch.Generator().manual_seed(1)
        weights = torch.randn(logits.shape, generator=generator).to(logits)
        own = dict(zip(names, gradient(logits, parameters, weights), strict=True))
        run = _run(traced, images, weights, names)
    if not _close(run.output, logits):
        return NoGraph("the graph that was written of the model does not give the model's own output")
    nodes = []
    for node in traced.graph.nodes:
        why = _why_opaque(node, run, own)
        nodes.append(node if why is None else Node(node.name, Opaque(why), node.inputs, node.shape))
    return replace(traced.graph, nodes=tuple(nodes))


def _run(traced: Traced, images: Tensor, weights: Tensor, names: Sequence[str]) -> _Run:
    values: dict[fx.Node, Any] = {}
    for node in traced.program.graph.nodes:
        if node.op == "placeholder":
            values[node] = traced.tensors.get(node.name, images)
            if node.name == traced.graph.images:
                values[node] = images.clone().requires_grad_()
        elif node.op == "call_function":
            values[node] = _evaluate(node, values.__getitem__)
    output = values[traced.nodes[traced.graph.output]]
    leaves = [values[node] for node in values if node.name == traced.graph.images]
    # What opaque operations read, too: a derivative goes where one is asked for.
    leaves += [tensor for tensor in traced.tensors.values() if tensor.requires_grad]
    watch = _Watch(traced, values, set(names))
    parameters = [traced.graph.tensors[name] for name in names]
    with watch.looking(output):
        found = torch.autograd.grad(output, [*parameters, *leaves], weights, allow_unused=True, materialize_grads=True)
    return _Run(output.detach(), watch.differences, dict(zip(names, found, strict=False)))


class _Watch:
    """Holds each operation against its kind when the derivative by its value arrives, and lets go of the value then:
    all derivatives and values at once would be twice the memory.

    Args:
        traced: The graph.
        values: Of the exported operations; given away.
        trained: Names of parameters whose gradient is looked at.
    """

    def __init__(self, traced: Traced, values: dict[fx.Node, Any], trained: Set[str]) -> None:
        self._traced, self._values, self._trained = traced, values, trained
        self.differences: dict[str, str | None] = {}

    @contextlib.contextmanager
    def looking(self, output: Tensor) -> Iterator[None]:
        """While the derivative of the output is taken."""
        hooks = []
        reached = functions_of(output)
        # The last one first: where an operation returns what it was given, one tensor is the value of both, and it is
        # looked at in this order.
        for node in reversed(self._traced.graph.nodes):
            value = self._values[self._traced.nodes[node.name]]
            if isinstance(node.kind, Opaque) or not isinstance(value, Tensor) or not value.requires_grad:
                continue
            if value.grad_fn in reached:
                hook = value.register_hook(functools.partial(self._arrives, node))  # type: ignore[no-untyped-call]
                hooks.append(hook)
            else:
                self.differences[node.name] = self._difference(node, torch.zeros_like(value))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()  # or values would hold themselves, where no garbage collector sees it

    def _arrives(self, node: Node, arriving: Tensor) -> None:
        self.differences[node.name] = self._difference(node, arriving.detach())
        # Whatever reads the value has been looked at: what arrives here came through it.
        del self._values[self._traced.nodes[node.name]]

    def _difference(self, node: Node, arriving: Tensor) -> str | None:
        return _difference(node, self._traced, self._values, arriving, self._trained)


def _evaluate(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
    """An exported operation; what it writes on is a copy."""
    target: Any = node.target
    writes = isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable

    def given(entering: fx.Node) -> Any:
        value = value_of(entering)
        return value.clone() if writes and isinstance(value, Tensor) else value

    return target(*fx.map_arg(node.args, given), **fx.map_arg(node.kwargs, given))


def _why_opaque(node: Node, run: _Run, own: Mapping[str, Tensor]) -> str | None:
    """Why an operation is not crossed; None where it is."""
    if isinstance(node.kind, Opaque):
        return node.kind.why
    for name in node.tensors.values():
        if name in own and not _close(run.gradients[name], own[name]):
            return f"the gradient of {name} is not what the operations that were written down make it"
    return run.differences.get(node.name, "no derivative arrives at it")


def _difference(
    node: Node, traced: Traced, values: Mapping[fx.Node, Any], arriving: Tensor, trained: Set[str]
) -> str | None:
    """What an operation does otherwise than its kind; None where nothing."""
    source = traced.nodes[node.name]
    entering = {by: value.detach() for by in source.all_input_nodes if isinstance(value := values[by], Tensor)}
    tensors = traced.graph.tensors_of(node, arriving)
    names = {exported: name for name, exported in traced.nodes.items()}
    by_value = {names.get(by, by.name): by for by in entering}
    inputs = [entering[by_value[name]] for name in node.inputs]
    free = [by for by in entering if values[by].requires_grad or by in names]
    local = {by: entering[by].clone().requires_grad_() for by in free}
    with torch.enable_grad():
        result = _evaluate(source, lambda by: local.get(by, entering.get(by)))
        found = torch.autograd.grad(result, list(local.values()), arriving, allow_unused=True, materialize_grads=True)
    expected = dict(zip(local, found, strict=True))
    with torch.no_grad():
        if not _close(node.kind.forward(inputs, tensors), result):
            return "its value is not that of its closed form"
    # What the kind says that it does not need, it is not given.
    seen = node.kind.seen(inputs, result)
    total: dict[str, Tensor] = {}
    for name, one in zip(node.inputs, node.kind.cotangents(arriving, seen, tensors), strict=True):
        total[name] = total[name] + one if name in total else one
    if not all(_close(one, expected[by_value[name]]) for name, one in total.items()):
        return "its derivative is not that of its closed form"
    roles = [role for role, name in node.tensors.items() if name in trained]
    ours = node.kind.gradients(arriving, inputs, tensors, roles)
    theirs = [expected[next(by for by in free if values[by] is traced.graph.tensors[node.tensors[r]])] for r in roles]
    if not all(_close(one, other) for one, other in zip(ours, theirs, strict=True)):
        return "its parameters' gradient is not that of its closed form"
    return None


def _close(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    return agree(ours, theirs)

"""From a model to its graph, by `torch.export`.

Of the two ways that torch has, `torch.fx` follows modules and methods by symbols and is instant, but fails where a
model looks at the size of what it is given, as those of timm with padding do. `torch.export` runs the model on tensors
without content and writes down the operations, whether they were asked for by modules, functions or operators, in about
a second of one core for a ResNet-50, and says which value is read where something was written in place.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from ...capture import BatchNormMode, client_mode
from ..kinds import READERS, Call, Opaque, Read
from .nodes import Graph, Node, NoGraph

_LONGEST_REASON = 160


@dataclass(frozen=True)
class Traced:
    """A graph and the exported model that it was read from."""

    graph: Graph
    program: ExportedProgram
    nodes: Mapping[str, fx.Node]
    """The exported operation of each node of the graph, by name."""
    tensors: Mapping[str, Tensor]
    """The model's parameters and buffers, and constants in it, by the name of the exported node that stands for it."""


def trace(model: nn.Module, images: Tensor, mode: BatchNormMode) -> Traced | NoGraph:
    """The model's graph, as it is written; `confirm` says what of it can be relied upon.

    Args:
        model: On any device; it is not changed.
        images: An example, at least two; how many there are may be built into the graph.
        mode: How the client ran batch norm.
    """
    try:
        with client_mode(model, mode), _quiet(), torch.no_grad():
            program = torch.export.export(model, (images,), strict=False)
    except Exception as error:  # the user's code may do anything, and the exporter refuses in many ways
        if "DataDependent" in type(error).__name__:
            return NoGraph("the model cannot be written as a graph, since it decides by the content of its images")
        reason = str(error).strip().partition("\n")[0][:_LONGEST_REASON]
        return NoGraph(f"the model cannot be written as a graph ({type(error).__name__}: {reason})")
    return _Reading(model, program, len(images)).traced()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says to whoever develops a model: a refusal is an answer here."""
    logger = logging.getLogger("torch")
    before = logger.level
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(before)


class _Reading:
    """An exported program while its operations are being named and sorted into kinds."""

    def __init__(self, model: nn.Module, program: ExportedProgram, count: int) -> None:
        self.program, self.count = program, count
        self.names: dict[str, str] = {}
        """What a parameter or buffer is called in the model, by its exported node."""
        self.tensors = _placeholders(model, program, self.names)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.named: dict[fx.Node, str] = {}
        """Values of the images, by the node that makes them."""

    def traced(self) -> Traced | NoGraph:
        """Read every operation that the output depends on."""
        signature = self.program.graph_signature
        (images,), outputs = signature.user_inputs, signature.user_outputs
        if len(outputs) != 1:
            return NoGraph(f"the model returns {len(outputs)} values where one is read, its logits")
        exported: dict[str, fx.Node] = {}
        nodes: list[Node] = []
        taken = {str(images)}
        for node in self.program.graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, Tensor):
                of_images = node.name == images or any(entering in self.named for entering in node.all_input_nodes)
                self.shapes[node.name] = tuple(map(int, value.shape[1:] if of_images else value.shape))
            if node.name == images:
                self.named[node] = node.name
            if node.op != "call_function" or not any(entering in self.named for entering in node.all_input_nodes):
                continue
            read = self._node(node, taken)
            self.named[node] = read.name
            nodes.append(read)
            taken.add(read.name)
            exported[read.name] = node
        output = next((name for node, name in self.named.items() if node.name == outputs[0]), None)
        if output is None:
            return NoGraph("the model's output does not depend on the images")
        graph = self._graph(nodes, str(images), output)
        return Traced(graph, self.program, exported, self.tensors)

    def _node(self, node: fx.Node, taken: set[str]) -> Node:
        read = self._read(node)
        if read is None:
            inputs = tuple(self.named[entering] for entering in node.all_input_nodes if entering in self.named)
            kind = Opaque(str(node.target))
            return Node(node.name, kind, inputs, self.shapes.get(node.name, ()))
        by_name = {entering.name: name for entering, name in self.named.items()}
        tensors = {role: self.names[name] for role, name in read.tensors.items()}
        owner = tensors.get("weight", "").rpartition(".")[0]
        name = owner if owner and owner not in taken else node.name
        inputs = tuple(by_name[entering] for entering in read.inputs)
        return Node(name, read.kind, inputs, self.shapes[node.name], tensors)

    def _read(self, node: fx.Node) -> Read | None:
        """None where the operation is of no known kind, or not between images and the model's own tensors."""
        value = node.meta.get("val")
        reader = READERS.get(str(node.target))
        if reader is None or not isinstance(value, Tensor) or tuple(value.shape[:1]) != (self.count,):
            return None
        call = Call(_bound(node), self.shapes, self.shapes[node.name])
        read = reader(call)
        if read is None:
            return None
        values = {entering.name for entering in self.named}
        batches = all(name in values and self._has_batch(name) for name in read.inputs)
        own = all(name in self.names for name in read.tensors.values())
        return read if batches and own else None

    def _has_batch(self, name: str) -> bool:
        value = next(node.meta["val"] for node in self.named if node.name == name)
        return isinstance(value, Tensor) and tuple(value.shape[:1]) == (self.count,)

    def _graph(self, nodes: Sequence[Node], images: str, output: str) -> Graph:
        """Only what the output depends on."""
        needed, graph = set[str](), Graph(tuple(nodes), images, self.shapes[images], output, {}, frozenset())
        needed |= graph.before(output)
        kept = tuple(node for node in nodes if node.name in needed)
        used = {name for node in kept for name in node.tensors.values()}
        by_name = {self.names[node]: tensor for node, tensor in self.tensors.items() if node in self.names}
        # Of the exported program's own reading: an opaque operation may read a parameter too.
        uses = {self.names[node.name]: len(node.users) for node in self.program.graph.nodes if node.name in self.names}
        trained = frozenset(name for name in used if by_name[name].requires_grad and uses[name] == 1)
        return Graph(kept, images, self.shapes[images], output, {name: by_name[name] for name in used}, trained)


def _placeholders(model: nn.Module, program: ExportedProgram, names: dict[str, str]) -> dict[str, Tensor]:
    """The tensor behind each of the program's inputs but the images; fills in their names in the model.

    A tensor of several names, as tied weights are, has the first of them everywhere.
    """
    signature = program.graph_signature
    given = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    first: dict[int, str] = {}
    for name, tensor in own.items():
        first.setdefault(id(tensor), name)
    found: dict[str, Tensor] = {}
    for node, target in given.items():
        found[node] = own[target]
        names[node] = first[id(own[target])]
    for node, target in signature.inputs_to_lifted_tensor_constants.items():
        constant = program.constants[target]
        assert isinstance(constant, Tensor)
        found[node] = constant
    return found


def _bound(node: fx.Node) -> dict[str, Any]:
    """Arguments by their names in the operation's schema; tensors by the names of their nodes."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    schema = target._schema.arguments
    bound = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    bound |= dict(zip((argument.name for argument in schema), node.args, strict=False))
    bound |= node.kwargs
    return {name: fx.map_arg(value, lambda entering: entering.name) for name, value in bound.items()}

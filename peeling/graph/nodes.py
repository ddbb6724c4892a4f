"""A network as a graph of operations between values of the images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..kinds import Kind, Opaque


@dataclass(frozen=True)
class Node:
    """One operation; its result is the value of the same name."""

    name: str
    """That of the module whose weights it reads, where it is the only one; else the operation's own."""
    kind: Kind
    inputs: tuple[str, ...]
    """Names of the values that enter, in order."""
    shape: tuple[int, ...]
    """Of the result for one image."""
    tensors: Mapping[str, str] = field(default_factory=dict)
    """Names of the model's parameters and buffers by their role, such as ``weight``."""


@dataclass(frozen=True)
class Graph:
    """All operations between the images and the model's output, in an order in which they can be run."""

    nodes: tuple[Node, ...]
    images: str
    """Name of the value that the images are."""
    image_shape: tuple[int, ...]
    output: str
    """Name of the value that is the model's output."""
    tensors: Mapping[str, Tensor]
    """The model's parameters and buffers that operations read, by name."""
    trained: frozenset[str]
    """Parameters that have a gradient of one operation's own: not those that several operations read."""

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """Each operation by the value that it makes."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def _readers(self) -> Mapping[str, tuple[Node, ...]]:
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                found.setdefault(value, []).append(node)
        return {value: tuple(nodes) for value, nodes in found.items()}

    def readers(self, value: str) -> tuple[Node, ...]:
        """Operations that a value enters."""
        return self._readers.get(value, ())

    def shape(self, value: str) -> tuple[int, ...]:
        """Of a value for one image."""
        return self.image_shape if value == self.images else self.by_name[value].shape

    def gradient_of(self, node: Node, role: str) -> str | None:
        """Name of the parameter in this role, where its gradient is this operation's alone."""
        name = node.tensors.get(role)
        return name if name in self.trained else None

    def tensors_of(self, node: Node, like: Tensor | None = None) -> dict[str, Tensor]:
        """An operation's parameters and buffers by their role, in float64 on the CPU or like another tensor."""
        like = torch.empty(0, dtype=torch.float64) if like is None else like
        return {role: self.tensors[name].detach().to(like) for role, name in node.tensors.items()}

    def before(self, value: str) -> frozenset[str]:
        """Every value that this one is computed from, with itself."""
        found, left = set[str](), [value]
        while left:
            name = left.pop()
            if name not in found:
                found.add(name)
                left += self.by_name[name].inputs if name in self.by_name else ()
        return frozenset(found)

    def opaque(self) -> Iterator[Node]:
        """Operations that are not crossed."""
        return (node for node in self.nodes if isinstance(node.kind, Opaque))


@dataclass(frozen=True)
class NoGraph:
    """The model has no graph that can be worked on."""

    why: str
    """One sentence."""

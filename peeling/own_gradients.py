"""Convolutions that could have been a foothold, and have no gradient of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from .graph import Graph

# More names than so many are counted and not listed.
_LISTED = 4


def without_own_gradient(graph: Graph, gradients: Mapping[str, Tensor]) -> str:
    """Which they are and why, in one clause; empty where there is none.

    Args:
        graph: The network.
        gradients: Captured, by parameter.
    """
    shared, lacking = list[str](), list[str]()
    for node in graph.nodes:
        if not node.kind.has_taps or "weight" not in node.tensors:
            continue
        name = node.tensors["weight"]
        if name in gradients and bool(gradients[name].any()):
            shared += [name] if graph.gradient_of(node, "weight") is None else []
        else:
            lacking.append(name)
    clauses = []
    if shared:
        clauses.append(
            f"the gradient of {_listed(shared)} is a sum over several uses of one weight (a module that runs twice, or "
            "tied layers)"
        )
    if lacking:
        clauses.append(f"the update holds no gradient of {_listed(lacking)} (frozen, left out, or all zeros)")
    return ", and ".join(clauses)


def _listed(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")

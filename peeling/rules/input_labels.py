"""Labels by the derivative of the loss at the final layer's input, where the layer's own gradient was not sent.

The derivative by the features is ``g_i = s_i (softmax(z_i) - y_i) W / B`` for cross-entropy (see `image_labels` for
the factors s). Behind the last rectifier no rule follows it by that layer's gradient, which a frozen layer does not
have; but where taps gave it in front of the last rectifier, it is known at every unit that was open, and each feature
is a mean over units, or one of them: its derivative is that of any of its open units over the unit's share. What is
sent through W is solved for the label without W being undone: each class is tried, with the factor that fits best.

Rank: an image's features with an open unit tell the rows of W of any two classes apart.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..graph import Graph, Node
from ..kinds import Linear, Needs
from .image_labels import ImageLabels, spread_labels, usual_factors
from .knowledge import Knowledge
from .passing import surely_open
from .rule import Setting

# What features share of a unit, as they may by rounding, beside what each has of its own.
_SHARED = 1e-9


def labels_by_input(setting: Setting, known: Knowledge, smoothing: float = 0.0) -> ImageLabels | None:
    """The labels of the images in the order in which the rules know them; None where the logits or the derivative by
    the features are not known.

    Args:
        setting: With the graph.
        known: With the logits, and a derivative in front of the final layer.
        smoothing: Of the labels, in [0, 1).
    """
    graph: Graph = setting.graph
    final = graph.by_name[graph.output]
    if not isinstance(final.kind, Linear) or len(final.shape) != 1:
        return None
    logits, found = known.complete(final.name), _by_features(setting, known, final.inputs[0])
    if logits is None or found is None:
        return None
    weight = graph.tensors_of(final)["weight"].detach().cpu().double()
    return fit_labels_behind(weight, *found, logits.values, smoothing)


def fit_labels_behind(
    weight: Float[Tensor, "class feature"],
    derivative: Float[Tensor, "image feature"],
    heard: Bool[Tensor, "image feature"],
    logits: Float[Tensor, "image class"],
    smoothing: float = 0.0,
) -> ImageLabels:
    """The label and the factor of each image by which the derivative by its features is that of cross-entropy.

    `ImageLabels.off` is here how far the label is from what the derivative says, against the way to the nearest other
    label: above one half, another one is nearer.

    Args:
        weight: Of the final layer.
        derivative: Of the loss of the batch.
        heard: Where it is known.
        logits: Of each image.
        smoothing: Of the labels, in [0, 1).
    """
    count, classes = logits.shape
    labels = spread_labels(classes, smoothing)
    expected = logits.softmax(dim=1)[:, None, :] - labels
    rows = torch.where(heard, count * derivative, 0.0)
    # Image by image: all at once they would be a number for each image, class and feature.
    sent = [(one @ weight) * ears for one, ears in zip(expected, heard.to(weight), strict=True)]
    factors = torch.stack(
        [
            (one @ row).clamp_min(0) / one.square().sum(dim=1).clamp_min(1e-300)
            for one, row in zip(sent, rows, strict=True)
        ]
    )
    left = torch.stack(
        [(row - factor[:, None] * one).norm(dim=1) for one, row, factor in zip(sent, rows, factors, strict=True)]
    )
    best = left.argmin(dim=1)
    scales, tells = usual_factors(factors, left, rows.norm(dim=1), best)
    away = torch.stack([(row / scale - one).norm(dim=1) for one, row, scale in zip(sent, rows, scales, strict=True)])
    chosen = torch.where(tells, best, away.argmin(dim=1))
    off = torch.stack(
        [own[label] / _nearest_other(one, int(label)) for one, own, label in zip(sent, away, chosen, strict=True)]
    )
    made = scales[:, None] * expected[torch.arange(count), chosen] / count
    return ImageLabels(chosen, off, scales, made)


def _nearest_other(sent: Float[Tensor, "class feature"], label: int) -> Tensor:
    """How far the features' derivative for another label is at least from that for this one."""
    apart = (sent - sent[label]).norm(dim=1)
    apart[label] = torch.inf
    return apart.min().clamp_min(1e-300)


def _by_features(setting: Setting, known: Knowledge, features: str) -> tuple[Tensor, Tensor] | None:
    """The derivative by the final layer's input, and where it is known; None where nothing of it is."""
    graph, path, value = setting.graph, list[Node](), features
    while True:
        arriving = known.arriving.get(value)
        if arriving is not None:
            return _through(graph, path, arriving.values, arriving.known)
        node = graph.by_name.get(value)
        if node is None or len(node.inputs) != 1 or graph.readers(value) != (_reader(graph, path),):
            return None
        if node.kind.needs is Needs.OUTPUT:
            arriving, output = known.arriving.get(node.inputs[0]), known.complete(value)
            if arriving is None or output is None or graph.readers(node.inputs[0]) != (node,):
                return None
            return _through(graph, path, arriving.values, arriving.known & surely_open(node, output))
        if node.kind.needs is not Needs.NOTHING:
            return None
        path.insert(0, node)
        value = node.inputs[0]


def _reader(graph: Graph, path: list[Node]) -> Node:
    return path[0] if path else graph.by_name[graph.output]


def _through(graph: Graph, path: list[Node], values: Tensor, heard: Tensor) -> tuple[Tensor, Tensor] | None:
    """The derivative by a path's output, from that by its input, where each unit of the input is part of one feature
    alone; None where units are part of several."""
    count, features = len(values), graph.by_name[path[-1].name].shape if path else tuple(values.shape[1:])
    (size,) = features if len(features) == 1 else (0,)
    if not size:
        return None
    numbers = torch.arange(1, size + 1, dtype=torch.float64)
    share, first, second = (_back(graph, path, one)[0].flatten() for one in (numbers**0, numbers, numbers**2))
    owner = (first / share).round()
    one_each = (first - share * owner).abs() <= _SHARED * share * size
    one_each &= (second - share * owner**2).abs() <= _SHARED * share * size**2
    if not bool((share > 0).all()) or not bool(one_each.all()):
        return None
    index = (owner.long() - 1).expand(count, -1)
    known = heard.flatten(1).to(torch.float64)
    weights = torch.zeros(count, size, dtype=torch.float64)
    weights.scatter_add_(1, index, known * share.square())
    sums = torch.zeros_like(weights).scatter_add_(1, index, known * share * values.flatten(1))
    told = weights > 0
    return torch.where(told, sums / weights.clamp_min(1e-300), 0.0), told


def _back(graph: Graph, path: list[Node], derivative: Tensor) -> Tensor:
    """The derivative of one image by the path's input."""
    found = derivative[None]
    for node in reversed(path):
        entering = torch.zeros(1, *graph.shape(node.inputs[0]), dtype=torch.float64)
        (found,) = node.kind.cotangents(found, [entering], graph.tensors_of(node))
    return found

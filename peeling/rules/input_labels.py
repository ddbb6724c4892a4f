"""Labels by the derivative of the loss at the final layer's input, where the layer's own gradient was not sent.

The derivative by the features is ``g_i = s_i (softmax(z_i) - y_i) W / B`` for cross-entropy (see `image_labels` for
the factors s). Behind the last rectifier no rule follows it by that layer's gradient, which a frozen layer does not
have; but where taps gave it in front of the last rectifier, it is known at every unit that was open, and each feature
is a mean over units, or one of them: its derivative is that of any of its open units over the unit's share. What is
sent through W is solved for the label without W being undone: each class is tried, with the factor that fits best.

Rank: at an image's features with an open unit, no two classes send the same up to a factor above zero.
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

# Nearer than this to what another label sends, relative, a label is not told from it.
_SAME = 1e-9
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
    label with whatever factor: above one half, another one may be nearer. It is infinite where the features that are
    known tell no label from another.

    Args:
        weight: Of the final layer.
        derivative: Of the loss of the batch.
        heard: Where it is known.
        logits: Of each image.
        smoothing: Of the labels, in [0, 1).
    """
    count, classes = logits.shape
    labels = spread_labels(classes, smoothing)
    probabilities, of_labels = logits.softmax(dim=1), labels @ weight
    rows = torch.where(heard, count * derivative, 0.0)

    def sent(image: int) -> Tensor:
        """What each class would send; made for one image at a time, as it is a number for each class and feature."""
        return (probabilities[image] @ weight - of_labels) * heard[image]

    fits = [_fit(sent(image), rows[image]) for image in range(count)]
    factors, left = (torch.stack(parts) for parts in zip(*fits, strict=True))
    best = left.argmin(dim=1)
    scales, tells = usual_factors(factors, left, rows.norm(dim=1), best)
    chosen, off = torch.empty_like(best), torch.empty_like(scales)
    for image in range(count):
        made = sent(image)
        away = (rows[image] / scales[image] - made).norm(dim=1)
        chosen[image] = best[image] if tells[image] else away.argmin()
        off[image] = away[chosen[image]] / _nearest_other(made, int(chosen[image]))
    made = scales[:, None] * (probabilities - labels[chosen]) / count
    return ImageLabels(chosen, off.nan_to_num(torch.inf), scales, made, by_input=True)


def _fit(sent: Float[Tensor, "class feature"], row: Float[Tensor, " feature"]) -> tuple[Tensor, Tensor]:
    """The factor above zero with which each class makes a row best, and what it leaves of it."""
    factors = (sent @ row).clamp_min(0) / sent.square().sum(dim=1).clamp_min(1e-300)
    return factors, (row - factors[:, None] * sent).norm(dim=1)


def _nearest_other(sent: Float[Tensor, "class feature"], label: int) -> Tensor:
    """How far what one label sends is at least from what another one does with any factor above zero; zero where they
    are not told apart."""
    own = sent[label]
    _, apart = _fit(sent, own)
    apart[label] = torch.inf
    nearest = apart.min()
    return torch.where(nearest > _SAME * own.norm(), nearest, 0.0)


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

"""A step's gradient in front of a cut, made again by the whole network from images that are known as well as features.

The derivative that was solved for at a cut has passed rectifiers whose outputs are known up to an error, and one unit
on the wrong side changes it by a percent. Images that make the features again say on which side each unit was: the
derivative by the network's output, which no rectifier follows, is carried back through these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..graph import Graph
from ..layers import sizes
from .places import Cut


def feature_misfits(cut: Cut, images: Float[Tensor, "image channel height width"]) -> Float[Tensor, " image"]:
    """What images leave of the features at a cut, relative.

    Args:
        cut: With the weights that they went through, and the features of the same images.
        images: As the model is given them.
    """
    with torch.no_grad():
        made = cut.features(torch.float64, torch.device("cpu"))(images.double())
    features = torch.cat([(place.values * place.is_open).flatten(1) for place in cut.places], dim=1)
    off = torch.cat([value.flatten(1) for value in made], dim=1) - features
    return sizes(off) / sizes(features).clamp_min(1e-300)


def gradients_by_output(
    graph: Graph,
    names: Sequence[str],
    images: Float[Tensor, "image channel height width"],
    arriving: Float[Tensor, "image ..."],
) -> Mapping[str, Tensor]:
    """The gradients of some parameters.

    Args:
        graph: With the weights of the step.
        names: Of the parameters.
        images: Of the step's visits.
        arriving: Derivative of its loss by the network's output.
    """
    free = {name: graph.tensors[name].detach().double().requires_grad_() for name in names}
    values = {graph.images: images.double()}
    with torch.enable_grad():
        for node in graph.nodes:
            tensors = graph.tensors_of(node) | {role: free[name] for role, name in node.tensors.items() if name in free}
            values[node.name] = node.kind.forward([values[name] for name in node.inputs], tensors)
        made = values[graph.output]
        found = torch.autograd.grad(made, list(free.values()), arriving, allow_unused=True, materialize_grads=True)
    return dict(zip(free, found, strict=True))

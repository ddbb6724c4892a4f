"""Small residual networks, their batches, and what may befall a gradient, for `residual_errors`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.local_steps import LocalSteps
from torch import Tensor, nn

from .residual_shapes import CLASSES, SHAPES

_STEPS, _BATCH = 25, 32


BATCHES = ("2 photos", "4 photos", "8 photos", "4 of one label", "3 nearly equal", "one of 3 twice", "3 photos")
NOISES = ("none", "1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "even 1e-4", "float16", "bfloat16", "bfloat16, cast")
OTHERS = ("smallest 10 % cut", "clipped", "each image clipped", "10 % kept")


@dataclass(frozen=True)
class Case:
    """A gradient, and the truth behind it. Images as the model is given them."""

    name: str
    noise: str
    model: nn.Module
    graph: Graph
    images: Tensor
    labels: Tensor
    factors: Tensor
    """By what each image's loss was multiplied."""
    gradients: Mapping[str, Tensor]
    truth: Mapping[str, Tensor]
    """Activations, by value, float64."""
    derivatives: Mapping[str, Tensor]
    """Of the loss by each value, float64."""
    steps: LocalSteps | None = None
    """Of a weight delta; then images are visits."""
    step_rate: float | None = None
    """Of a gradient that was read off the weight delta of one step."""
    exact: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None = None
    """Activations and derivatives in float64, where `truth` and `derivatives` are the client's own numbers."""


@cache
def make_network(name: str, seed: int) -> nn.Sequential:
    """One of ``NETWORKS`` in evaluation mode."""
    shape, _, state = name.partition(", ")
    torch.manual_seed(seed)
    side, make = SHAPES[shape]
    model = make()
    if state == "trained":
        train(model, side, seed)
    elif state != "random":
        shift(model)
    if state == "dead":
        _kill(model)
    return model.eval()


def shift(model: nn.Module) -> None:
    """Batch norms away from 1 and 0."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(0, 0.1)
            module.get_buffer("running_var").uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)


def _kill(model: nn.Module) -> None:
    """An eighth of the channels of each batch norm, or of each convolution with a bias, never passes a ReLU."""
    with torch.no_grad():
        for module in model.modules():
            bias = module.bias if isinstance(module, nn.BatchNorm2d | nn.Conv2d) else None
            if bias is not None:
                bias[::8] = -100.0


def train(model: nn.Module, side: int, seed: int) -> None:
    """A few steps on crops of photos; the model is left in training mode."""
    images = photos(_BATCH, side, 1000 + seed)
    labels = torch.arange(_BATCH) % CLASSES
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for _ in range(_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def photos(count: int, side: int, seed: int) -> Tensor:
    """Crops of scikit-image's photos as 8-bit files, normalised."""
    from gradinversion.capture import IMAGENET
    from gradinversion.peeling.cut import photo_crops, public_photos

    crops = photo_crops(list(public_photos().values()), (side, side), count, seed)
    return IMAGENET.apply((255 * crops).round() / 255)


def _batch(kind: str, side: int, seed: int) -> tuple[Tensor, Tensor]:
    count = next(int(word) for word in kind.split() if word.isdigit())
    images = photos(count, side, seed)
    labels = (3 * torch.arange(count) + seed) % CLASSES
    if kind.endswith("nearly equal"):
        random = torch.Generator().manual_seed(seed)
        images = images[:1] + 0.02 * torch.randn(images.shape, generator=random)
    if kind.endswith("twice"):
        images[1], labels[1] = images[0], labels[0]
    if kind.endswith("one label"):
        labels = torch.full_like(labels, seed % CLASSES)
    return images, labels


def make_case(network: str, batch: str, noise: str, seed: int) -> Case:
    """One gradient of one of ``NETWORKS`` and ``BATCHES``, with one of ``NOISES`` or ``OTHERS``."""
    return case_of_model(network, make_network(network, seed), side_of(network), batch, noise, seed)


def name_of(network: str, batch: str, noise: str, seed: int) -> str:
    """Of a case."""
    return f"{network}; {batch}; {noise}; seed {seed}"


def case_of_model(network: str, model: nn.Module, side: int, batch: str, noise: str, seed: int) -> Case:
    """The same of any model in evaluation mode, whose images are so large."""
    images, labels = _batch(batch, side, seed)
    factors = torch.ones(len(labels))
    if noise == "clipped":
        factors = 0.37 * factors
    if noise == "each image clipped":
        factors = torch.linspace(0.3, 1.0, len(labels))
    names = [name for name, _ in model.named_parameters()]
    loss = (factors * F.cross_entropy(model(images), labels, reduction="none")).mean()
    found = dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    graph = network_graph(model, (3, side, side), BatchNormMode.EVAL, len(images))
    assert isinstance(graph, Graph)
    truth, derivatives = truth_of(graph, images, labels, factors)
    name = name_of(network, batch, noise, seed)
    return Case(name, noise, model, graph, images, labels, factors, disturbed(found, noise, seed), truth, derivatives)


def disturbed(gradients: Mapping[str, Tensor], noise: str, seed: int) -> dict[str, Tensor]:
    """What is sent of these gradients."""
    random = torch.Generator().manual_seed(seed)
    if noise.startswith(("float16", "bfloat16")):
        kind = torch.float16 if noise.startswith("float16") else torch.bfloat16
        sent = {name: gradient.to(kind) for name, gradient in gradients.items()}
        return {name: one.float() for name, one in sent.items()} if noise.endswith("cast") else sent
    if noise == "smallest 10 % cut":
        return {name: g * (g.abs() > g.abs().flatten().quantile(0.1)) for name, g in gradients.items()}
    if noise == "10 % kept":
        return {name: g * (g.abs() > g.abs().flatten().quantile(0.9)) for name, g in gradients.items()}
    if noise.startswith("even"):
        every = torch.cat([gradient.flatten() for gradient in gradients.values()])
        size = float(noise.split()[1]) * every.square().mean().sqrt()
        return {name: g + size * torch.randn(g.shape, generator=random) for name, g in gradients.items()}
    if noise[0].isdigit():
        return {
            name: g + float(noise) * g.square().mean().sqrt() * torch.randn(g.shape, generator=random)
            for name, g in gradients.items()
        }
    return dict(gradients)


def side_of(network: str) -> int:
    """Of the images of one of ``NETWORKS``."""
    return SHAPES[network.partition(", ")[0]][0]


def truth_of(
    graph: Graph, images: Tensor, labels: Tensor, factors: Tensor, dtype: torch.dtype = torch.float64
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Activations at every value, and the derivative by it of the mean of losses times their factors, in float64.

    Args:
        graph: The network.
        images: As it is given them.
        labels: Theirs.
        factors: By what each image's loss is multiplied.
        dtype: That it is computed in: in float32 it is what a client has.
    """
    values = {graph.images: images.detach().to(dtype).requires_grad_()}
    for node in graph.nodes:
        tensors = graph.tensors_of(node, values[graph.images])
        values[node.name] = node.kind.forward([values[name] for name in node.inputs], tensors)
    losses = F.cross_entropy(values[graph.output], labels, reduction="none")
    found = torch.autograd.grad((factors * losses).mean(), list(values.values()), allow_unused=True)
    derivatives = {name: one.double() for name, one in zip(values, found, strict=True) if one is not None}
    return {name: value.detach().double() for name, value in values.items()}, derivatives

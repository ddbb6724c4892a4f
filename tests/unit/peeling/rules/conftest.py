"""A residual network so wide for its few places that its gradient determines all of it, and its true values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import BatchNormMode, client_mode
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.rules import Derivation, derive
from torch import Tensor, nn

PIXELS = 8


class Block(nn.Module):
    """Two convolutions and a skip."""

    def __init__(self, entering: int, leaving: int, stride: int, normed_skip: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(entering, leaving, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(leaving)
        self.conv2 = nn.Conv2d(leaving, leaving, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(leaving)
        self.down = nn.Sequential() if stride == 1 else nn.Conv2d(entering, leaving, 1, stride)
        if normed_skip and stride > 1:
            self.down = nn.Sequential(nn.Conv2d(entering, leaving, 1, stride, bias=False), nn.BatchNorm2d(leaving))

    def forward(self, value: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(value)))))
        return F.relu(inner + self.down(value))


def _residual_network(seed: int = 0, stem: int = 16, wide: int = 64, normed_skips: bool = False) -> nn.Sequential:
    """Places 8 x 8, 4 x 4, 2 x 2; batch norms with statistics and weights away from 0 and 1."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, stem, 3, 1, 1),
        nn.ReLU(),
        Block(stem, 32, 2, normed_skips),
        Block(32, wide, 2, normed_skips),
        Block(wide, wide, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(wide, 10),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(0, 0.1)
            module.get_buffer("running_var").uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


@dataclass(frozen=True)
class Case:
    """A gradient of this network, and what it was made from."""

    model: nn.Module
    graph: Graph
    images: Tensor
    gradients: dict[str, Tensor]
    truth: dict[str, Tensor]
    """Float64, by value."""

    def derived(self, image_count: int | None = None, tolerance: float = 3e-2, operations: float = 1e11) -> Derivation:
        count = image_count or len(self.images)
        return derive(self.graph, self.gradients, count, tolerance, operations=operations)

    def errors(self, value: str, found: Tensor) -> list[float]:
        """Relative, of each image found, against the nearest true one, each of which must be met once."""
        flat, true = found.flatten(1), self.truth[value].flatten(1)
        apart = torch.cdist(flat, true, compute_mode="donot_use_mm_for_euclid_dist") / true.norm(dim=1)
        assert sorted(apart.argmin(dim=1).tolist()) == list(range(len(true)))
        return apart.amin(dim=1).tolist()


def _images(count: int, seed: int) -> Tensor:
    """Blotches of colour with some grain, as unlike each other as photos are."""
    generator = torch.Generator().manual_seed(seed)
    blotches = 3 * torch.randn(count, 3, 3, 3, generator=generator)
    grain = 0.3 * torch.randn(count, 3, PIXELS, PIXELS, generator=generator)
    return F.interpolate(blotches, PIXELS, mode="bilinear", align_corners=True) + grain


def _residual_case(
    count: int = 2,
    seed: int = 0,
    model: nn.Module | None = None,
    mode: BatchNormMode = BatchNormMode.EVAL,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """A gradient of cross-entropy, in float32 and with batch norm on running statistics unless said otherwise."""
    model = _residual_network(seed) if model is None else model
    model, images = model.to(dtype), _images(count, seed + 1).to(dtype)
    with client_mode(model, mode):
        loss = F.cross_entropy(model(images), torch.arange(count) * 3)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
    graph = network_graph(model, (3, PIXELS, PIXELS), mode, count)
    assert isinstance(graph, Graph)
    truth = {graph.images: images.double()}
    with torch.no_grad():
        for node in graph.nodes:
            entering = [truth[name] for name in node.inputs]
            truth[node.name] = node.kind.forward(entering, graph.tensors_of(node))
    return Case(model, graph, images, gradients, truth)


@pytest.fixture(scope="session")
def residual_case() -> Callable[..., Case]:
    """Makes a case: ``residual_case(count=2, seed=0, model=None, mode=eval, dtype=float32)``."""
    return _residual_case


@pytest.fixture(scope="session")
def residual_network() -> Callable[..., nn.Sequential]:
    """Makes a network: ``residual_network(seed=0, stem=16, wide=64, normed_skips=False)``."""
    return _residual_network

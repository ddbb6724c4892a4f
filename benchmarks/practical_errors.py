"""The errors that peeling states in practical settings against the true ones: train mode, local steps, sums, defences.

    python -m benchmarks.practical_errors --share 0 4         # a fourth of the 748 cases of seed 0, some minutes
    python -m benchmarks.practical_errors --only "2 clients"  # settings whose name holds this
    python -m benchmarks.practical_errors --missing           # only cases that the file lacks

As `residual_errors`: small residual networks of many shapes on random weights, with batch norms away from 1 and 0,
trained a little, and with dead channels. A violation is a true error over ten times the stated one. Of a weight delta
an image counts once for every visit, under the weights of its own step.

In train mode the truth is what the client computed, in float32. Where a channel differs little over few places, batch
norm divides by a small deviation and the derivative in front is a small rest of two large sums: of one image a client's
own derivatives are off by 1e-5 and more from exact arithmetic, and these are the ones that it sends. How far what is
stated is from exact arithmetic stands beside it (`exact_ratio`).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from gradinversion.capture import BatchNormMode, client_mode
from gradinversion.capture.client.defending import apply_defence
from gradinversion.capture.client.dp_sgd import noisy_mean
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.local_steps import LocalSteps
from torch import Tensor, nn

from .residual_cases import Case, disturbed, make_network, photos, side_of, truth_of
from .residual_errors import FACTOR, measure_all, show, written
from .residual_shapes import CLASSES, NETWORKS

RESULTS = Path(__file__).parent / "results" / "practical_errors.json"
_EVAL, _TRAIN = BatchNormMode.EVAL, BatchNormMode.TRAIN_PRIVATE
_COUNT = 4


@dataclass(frozen=True)
class Setting:
    """What a client does."""

    name: str
    make: Callable[[str, nn.Module, int], Case]
    """Given the network's name, the network, and a seed."""


def _gradient(
    network: str,
    model: nn.Module,
    seed: int,
    mode: BatchNormMode = _EVAL,
    noise: str = "none",
    defence: tuple[str, float] | None = None,
    clip: float = 0.0,
    count: int = _COUNT,
    rate: float = 0.0,
) -> Case:
    """One gradient of so many images; `clip` makes it DP-SGD, whose noise is then a multiplier, and `rate` what is left
    of it in weights that moved by one step."""
    images, labels = photos(count, side_of(network), seed), (3 * torch.arange(count) + seed) % CLASSES
    graph = _graph(model, images, mode)
    factors = torch.ones(count)
    random = torch.Generator().manual_seed(seed)
    if clip:
        each = [_sent(model, images[i : i + 1], labels[i : i + 1], mode) for i in range(count)]
        # As the client: a norm of a million entries that is taken in float32 is off by more than what is stated.
        norms = torch.stack([torch.cat([one.flatten().double() for one in own.values()]).norm() for own in each])
        factors = (clip / norms).clamp_max(1)
        gradients = noisy_mean(iter(each), clip, float(noise), random)
    else:
        gradients = disturbed(_sent(model, images, labels, mode), noise, seed)
    if rate:
        before = {name: parameter.detach() for name, parameter in model.named_parameters()}
        gradients = {name: (before[name] - (before[name] - rate * one)) / rate for name, one in gradients.items()}
    if defence is not None:
        gradients = apply_defence(gradients, *defence, random)
    exact = truth_of(graph, images, labels, factors)
    own = truth_of(graph, images, labels, factors, torch.float32) if mode is _TRAIN else exact
    case = Case(network, noise, model, graph, images, labels, factors, gradients, *own)
    return replace(case, exact=None if own is exact else exact, step_rate=rate or None)


def _delta(
    network: str,
    model: nn.Module,
    seed: int,
    clients: int,
    batches: Sequence[Sequence[int]],
    m: float,
    mode: BatchNormMode = _EVAL,
) -> Case:
    """The average of clients' weight deltas, each with the images that come next."""
    each = 1 + max(one for batch in batches for one in batch)
    images = photos(each * clients, side_of(network), seed)
    labels = (3 * torch.arange(len(images)) + seed) % CLASSES
    visits = tuple(len(batch) for batch in batches for _ in range(clients))
    steps = LocalSteps(visits, 0.05, m, clients=clients)
    order = [client * each + torch.tensor(batch) for batch in batches for client in range(clients)]
    graph = _graph(model, images[torch.cat(order)], mode)
    dtype = torch.float32 if mode is _TRAIN else torch.float64
    moved, values, derivatives = (
        dict[str, Tensor](),
        dict[int, Mapping[str, Tensor]](),
        dict[int, Mapping[str, Tensor]](),
    )
    for client in range(clients):
        after = copy.deepcopy(model)
        optimiser = torch.optim.SGD(after.parameters(), lr=steps.rate, momentum=m)
        for number in range(client, steps.count, clients):
            own, chosen = replace(graph, tensors=_tensors(graph, after)), order[number]
            ones = torch.full((len(chosen),), float(steps.counts[number]))
            values[number], derivatives[number] = truth_of(own, images[chosen], labels[chosen], ones, dtype)
            optimiser.zero_grad()
            with client_mode(after, mode):
                F.cross_entropy(after(images[chosen]), labels[chosen]).backward()
            optimiser.step()
        for (name, before), now in zip(model.named_parameters(), after.parameters(), strict=True):
            moved[name] = moved.get(name, 0) + (now - before).detach() / clients
    gradients = {name: steps.summed(before.detach(), moved[name]) for name, before in model.named_parameters()}
    truth, slopes = (
        {name: torch.cat([one[number][name] for number in range(steps.count)]) for name in one[0]}
        for one in (values, derivatives)
    )
    seen = torch.cat(order)
    factors = torch.ones(len(seen))
    return Case(network, "none", model, graph, images[seen], labels[seen], factors, gradients, truth, slopes, steps)


def _sent(model: nn.Module, images: Tensor, labels: Tensor, mode: BatchNormMode) -> dict[str, Tensor]:
    names = [name for name, _ in model.named_parameters()]
    with client_mode(model, mode):
        loss = F.cross_entropy(model(images), labels)
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


def _graph(model: nn.Module, images: Tensor, mode: BatchNormMode) -> Graph:
    graph = network_graph(model, (images.shape[1], images.shape[2], images.shape[3]), mode, len(images))
    assert isinstance(graph, Graph)
    return graph


def _tensors(graph: Graph, model: nn.Module) -> dict[str, Tensor]:
    """The graph's, with the parameters of a model that has moved."""
    now = {name: one.detach().double().clone() for name, one in model.named_parameters()}
    return {name: now.get(name, tensor) for name, tensor in graph.tensors.items()}


def _steps(
    clients: int, *batches: Sequence[int], momentum: float = 0.0, mode: BatchNormMode = _EVAL
) -> Callable[[str, nn.Module, int], Case]:
    return partial(_delta, clients=clients, batches=batches, m=momentum, mode=mode)


SETTINGS = (
    Setting("train mode", partial(_gradient, mode=_TRAIN)),
    Setting("train mode, noise 1e-5", partial(_gradient, mode=_TRAIN, noise="1e-5")),
    Setting("train mode, noise 1e-4", partial(_gradient, mode=_TRAIN, noise="1e-4")),
    Setting("2 steps of 2", _steps(1, (0, 1), (2, 3))),
    Setting("2 steps of 2, momentum 0.9", _steps(1, (0, 1), (2, 3), momentum=0.9)),
    Setting("2 epochs of 1 step of 3", _steps(1, (0, 1, 2), (2, 0, 1))),
    Setting("2 clients of 2 steps of 1", _steps(2, (0,), (1,))),
    Setting("DP-SGD, clip 1, noise 0", partial(_gradient, clip=1.0, noise="0")),
    Setting("DP-SGD, clip 1, noise 1e-4", partial(_gradient, clip=1.0, noise="1e-4")),
    Setting("DP-SGD, clip 1, noise 1e-3", partial(_gradient, clip=1.0, noise="1e-3")),
    Setting("8 bits", partial(_gradient, defence=("quantise", 8))),
    Setting("16 bits", partial(_gradient, defence=("quantise", 16))),
    Setting("smallest half cut", partial(_gradient, defence=("prune", 0.5))),
    Setting("train mode, one image", partial(_gradient, mode=_TRAIN, count=1)),
    Setting("train mode, one image, noise 1e-5", partial(_gradient, mode=_TRAIN, count=1, noise="1e-5")),
    Setting("train mode, two images", partial(_gradient, mode=_TRAIN, count=2)),
    Setting("1 step at 0.01", partial(_gradient, rate=0.01)),
    Setting("1 step at 0.001", partial(_gradient, rate=0.001)),
    Setting("train mode, 1 step at 0.01", partial(_gradient, mode=_TRAIN, rate=0.01)),
    Setting("train mode, 2 steps of 2", _steps(1, (0, 1), (2, 3), mode=_TRAIN)),
)


def cases(seed: int, only: str, share: tuple[int, int], done: Container[str] = ()) -> Iterator[Case]:
    """Every setting on every network, but what is done. Of a share ``(i, n)`` each n-th case, from the i-th on."""
    for row, network in enumerate(NETWORKS):
        for column, setting in enumerate(SETTINGS):
            name = f"{network}; {setting.name}; seed {seed}"
            if only in setting.name and (row + column) % share[1] == share[0] and name not in done:
                case = setting.make(network, make_network(network, seed), seed)
                yield replace(case, name=name, noise=setting.name)


def main() -> None:
    """Measure the cases that are asked for; those of other shares in the file stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="settings whose name holds this")
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="each N-th case")
    parser.add_argument("--missing", action="store_true", help="only cases that the file lacks")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    before = written(arguments.out)
    done = {line["case"] for line in before} if arguments.missing else set()
    chosen = cases(arguments.seed, arguments.only, tuple(arguments.share), done)
    outcomes = measure_all(chosen, arguments.out, before)
    show(outcomes, [setting.name for setting in SETTINGS])
    exact = [one.exact_ratio for one in outcomes if one.exact_ratio is not None]
    if exact:
        print(
            f"Against exact arithmetic: {sum(one > FACTOR for one in exact)} of {len(exact)} over {FACTOR:g} times, "
            f"at most {max(exact):.3g}"
        )


if __name__ == "__main__":
    main()

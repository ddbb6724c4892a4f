"""The error that peeling states against the true one, over networks, labels, states and defences of the gradient.

    python -m benchmarks.peeling_errors                  # seeds 0 and 1: 672 cases, two minutes on one core
    python -m benchmarks.peeling_errors --seeds 5 6 7    # others
    python -m benchmarks.peeling_errors --only convnet   # one network, each violation with its figures

A violation is an anchor whose true error, of its activations or of its cotangent, is more than ten times the stated
one. What is refused is no violation; how deep peeling comes stands beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from statistics import median

import torch
import torch.nn.functional as F
from gradinversion.capture import CapturedUpdate, Normalisation, capture_gradient
from gradinversion.capture.models import convnet
from gradinversion.peeling import Anchor, peel
from torch import Tensor, nn

SIDE, CLASSES = 8, 10
LABELS = ([3], [5, 0], [8, 1, 6, 2], [4, 4, 1])
NOISES = ("none", "1e-6", "1e-5", "1e-4", "1e-3", "float16", "clipped")
FACTOR = 10.0
"""How many times its stated error an anchor may be off."""
# A client computes in float32: its own cotangent is known no better.
_FLOOR = 2e-7
_NORMALISATION = Normalisation(mean=(0.5, 0.45, 0.4), std=(0.25, 0.25, 0.25))
_TRAINING_STEPS, _TRAINING_IMAGES = 25, 32


def _convolutions(bias: bool, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 12, 1), (12, 16, 2), (16, 16, 1)):
        layers.append(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias))
        layers += [nn.BatchNorm2d(outputs)] * norm
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * (SIDE // 2) ** 2, CLASSES))


def _perceptron(bias: bool) -> nn.Sequential:
    sizes = (3 * SIDE**2, 64, 32)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], CLASSES, bias=bias))


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "convnet": lambda: convnet(CLASSES, 2 * SIDE, width=8),
    "bias": lambda: _convolutions(bias=True, norm=False),
    "batch norm": lambda: _convolutions(bias=False, norm=True),
    "neither": lambda: _convolutions(bias=False, norm=False),
    "linear": lambda: _perceptron(bias=True),
    "linear without bias": lambda: _perceptron(bias=False),
}


@dataclass(frozen=True)
class Case:
    """One update and what peeling must find in it; images are normalised."""

    name: str
    model: nn.Sequential
    update: CapturedUpdate
    labels: Tensor
    images: Tensor
    factors: Tensor
    """What clipping left each image."""

    def true_errors(self, anchor: Anchor) -> tuple[float, float]:
        """Relative errors of activations and cotangent against the model's own, pass for pass."""
        index = int(anchor.module)
        with torch.no_grad():
            entering = self.model[:index](self.images)
        entering.requires_grad_()
        losses = F.cross_entropy(self.model[index:](entering.clone()), self.labels, reduction="none")
        (cotangent,) = torch.autograd.grad((self.factors * losses).sum() / len(losses), entering)
        activations = entering.detach().clamp_min(0) if anchor.one_sided else entering.detach()
        # Images of one label may come in any order.
        orders = (list(o) for o in permutations(range(len(losses))) if torch.equal(self.labels[list(o)], self.labels))
        order = min(orders, key=lambda o: _off(anchor.activations, activations[o]))
        return _off(anchor.activations, activations[order]), _off(anchor.cotangent, cotangent[order])


@dataclass(frozen=True)
class Outcome:
    """What peeling said of a case, and what is true; no module where it was refused."""

    case: str
    module: str | None
    stated: float
    activations: float
    cotangent: float

    @property
    def ratio(self) -> float:
        """How many times the stated error the true one is."""
        if self.module is None:
            return 0.0
        return max(self.activations, self.cotangent) / max(self.stated, _FLOOR)

    @property
    def violates(self) -> bool:
        """Whether the statement is false."""
        return not self.ratio <= FACTOR


def _off(found: Tensor, truth: Tensor) -> float:
    truth = truth.double()
    return float((found - truth).norm() / truth.norm().clamp_min(1e-300))


def make_model(network: str, trained: bool, seed: int) -> nn.Sequential:
    """One of ``NETWORKS`` in evaluation mode, on random weights or after some steps on random images."""
    torch.manual_seed(seed)
    model = NETWORKS[network]()
    if trained:
        images, labels = torch.randn(_TRAINING_IMAGES, *_shape(network)), torch.arange(_TRAINING_IMAGES) % CLASSES
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(_TRAINING_STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval()


def _shape(network: str) -> tuple[int, int, int]:
    side = 2 * SIDE if network == "convnet" else SIDE
    return 3, side, side


def make_case(network: str, model: nn.Sequential, labels: Sequence[int], noise: str, seed: int) -> Case:
    """A client's update of random images, with one of ``NOISES`` on each tensor, relative to its root mean square."""
    random = torch.Generator().manual_seed(seed)
    images, targets = torch.rand(len(labels), *_shape(network), generator=random), torch.tensor(labels)
    update = capture_gradient(model, images, targets, normalisation=_NORMALISATION, batch_norm="eval")
    factors = torch.ones(len(labels))
    sent = dict(update.gradients)
    if noise == "clipped":
        factors = torch.linspace(0.3, 1.0, len(labels)) if len(labels) > 1 else torch.tensor([0.5])
        parts = [
            capture_gradient(model, i[None], t[None], normalisation=_NORMALISATION, batch_norm="eval").gradients
            for i, t in zip(images, targets, strict=True)
        ]
        sent = {k: sum(f * part[k] for f, part in zip(factors, parts, strict=True)) / len(parts) for k in sent}
    elif noise == "float16":
        sent = {name: gradient.half() for name, gradient in sent.items()}
    elif noise != "none":
        sent = {
            name: g + float(noise) * g.square().mean().sqrt() * torch.randn(g.shape, generator=random)
            for name, g in sent.items()
        }
    name = f"{network}, labels {list(labels)}, {noise}, seed {seed}"
    return Case(name, model, replace(update, gradients=sent), targets, _NORMALISATION.apply(images), factors)


def measure(case: Case) -> Outcome:
    """Peel, and compare with the truth."""
    anchor = peel(case.update, case.model, case.labels).anchor
    if anchor is None:
        return Outcome(case.name, None, float("inf"), 0.0, 0.0)
    return Outcome(case.name, anchor.module, anchor.error, *case.true_errors(anchor))


def outcomes(network: str, noise: str, seeds: Sequence[int]) -> Iterator[Outcome]:
    """Of all labels and both states of training."""
    for seed in seeds:
        for trained in (False, True):
            model = make_model(network, trained, seed)
            for labels in LABELS:
                found = measure(make_case(network, model, labels, noise, seed))
                yield replace(found, case=f"{found.case}, {'trained' if trained else 'random'}")


def main() -> None:
    """Print the table, and each violation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", choices=NETWORKS, help="one network")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    total, violations = 0, list[Outcome]()
    print(
        "| network | noise | cases | refused | median layers left | median stated | median true | worst ratio | false |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for network in [arguments.only] if arguments.only else NETWORKS:
        for noise in NOISES:
            found = list(outcomes(network, noise, arguments.seeds))
            kept = [one for one in found if one.module is not None]
            false = [one for one in kept if one.violates]
            total, violations = total + len(found), violations + false
            figures = "| | | | |"
            if kept:
                true = median(max(one.activations, one.cotangent) for one in kept)
                figures = (
                    f"{median(int(one.module or 0) for one in kept):g} | {median(one.stated for one in kept):.1e} | "
                    f"{true:.1e} | {max(one.ratio for one in kept):.3g} |"
                )
            print(
                f"| {network} | {noise} | {len(found)} | {len(found) - len(kept)} | {figures} {len(false)} |",
                flush=True,
            )
    print(f"\n{total} cases, {len(violations)} false statements")
    for one in violations:
        print(
            f"  {one.case}: module {one.module}, stated {one.stated:.1e}, activations {one.activations:.1e}, "
            f"cotangent {one.cotangent:.1e}"
        )


if __name__ == "__main__":
    main()

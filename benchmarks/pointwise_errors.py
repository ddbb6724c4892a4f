"""The errors that peeling states on networks of pointwise and depthwise convolutions, against the true ones.

    python -m benchmarks.pointwise_errors                   # 252 cases
    python -m benchmarks.pointwise_errors --seeds 2 --only random trained --missing    # those that the file lacks

Small networks as phones run them, in three states, with every batch and every damage of `residual_cases`. What counts,
and what the lines say, is as in `residual_errors`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from .residual_cases import BATCHES, NOISES, OTHERS, Case, case_of_model, name_of, shift, train
from .residual_errors import measure_all, show, written
from .residual_shapes import CLASSES

RESULTS = Path(__file__).parent / "results" / "pointwise_errors.json"
SIDE = 8
_STATES = ("random", "shifted", "trained")


class Inverted(nn.Module):
    """Expand, depthwise, project; a skip where form and stride allow it."""

    def __init__(self, widths: tuple[int, int, int], stride: int, kernel: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        entering, hidden, leaving = widths
        self.skips = entering == leaving and stride == 1
        self.inner = nn.Sequential(
            nn.Conv2d(entering, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            act(),
            nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            act(),
            nn.Conv2d(hidden, leaving, 1, bias=False),
            nn.BatchNorm2d(leaving),
        )

    def forward(self, value: Tensor) -> Tensor:
        inner: Tensor = self.inner(value)
        return inner + value if self.skips else inner


def _phone(kernel: int, act: Callable[[], nn.Module]) -> nn.Module:
    """Places 4 x 4, then 2 x 2."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 2, 2),
        nn.BatchNorm2d(64),
        act(),
        nn.Conv2d(64, 40, 1),
        Inverted((40, 400, 48), 2, 3, act),
        Inverted((48, 240, 48), 1, kernel, act),
        nn.Conv2d(48, 96, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, CLASSES),
    )


_SHAPES: dict[str, Callable[[], nn.Module]] = {
    "phone, ReLU6, 3x3": lambda: _phone(3, nn.ReLU6),
    "phone, ReLU6, 5x5": lambda: _phone(5, nn.ReLU6),
    "phone, ReLU, 3x3": lambda: _phone(3, nn.ReLU),
}
NETWORKS = tuple(f"{shape}, {state}" for shape in _SHAPES for state in _STATES)


@cache
def _model(network: str, seed: int) -> nn.Module:
    shape, _, state = network.rpartition(", ")
    torch.manual_seed(seed)
    model = _SHAPES[shape]()
    # Batch norms on statistics of their own, so that ceilings are met too.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(0, 0.3)
            module.get_buffer("running_var").uniform_(0.02, 0.1)
    if state == "trained":
        train(model, SIDE, seed)
    if state == "shifted":
        shift(model)
    return model.eval()


def cases(
    seeds: Sequence[int], only: Sequence[str], noises: Sequence[str], without: Collection[str] = ()
) -> Iterator[Case]:
    """Every network whose name holds one of these words, with every noise; batches take turns.

    Args:
        seeds: Of weights, photos and noise.
        only: Words; "" is in every name.
        noises: Of `residual_cases`.
        without: Names of cases that are left out.
    """
    for seed in seeds:
        for row, network in enumerate(NETWORKS):
            for column, noise in enumerate((*NOISES, *OTHERS)):
                batch = BATCHES[(row + column * 3 + seed) % len(BATCHES)]
                named = name_of(network, batch, noise, seed) not in without
                if any(word in network for word in only) and noise in noises and named:
                    yield case_of_model(network, _model(network, seed), SIDE, batch, noise, seed)


def main() -> None:
    """Measure the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", default=[""], help="networks whose name holds one of these")
    parser.add_argument("--noises", nargs="+", choices=(*NOISES, *OTHERS), default=(*NOISES, *OTHERS))
    parser.add_argument("--operations", type=float, default=math.inf, help="peeling.operations")
    parser.add_argument("--missing", action="store_true", help="only cases that the file lacks, whose lines stay")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    before = written(arguments.out) if arguments.missing else []
    chosen = cases(arguments.seeds, arguments.only, arguments.noises, {line["case"] for line in before})
    show(measure_all(chosen, arguments.out, before, operations=arguments.operations))


if __name__ == "__main__":
    main()

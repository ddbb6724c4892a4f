"""The errors that peeling by taps states against the true ones, over small residual networks and damaged gradients.

    python -m benchmarks.residual_errors --share 0 2          # half of seed 0's 616 cases, ten minutes of one core
    python -m benchmarks.residual_errors --seeds 1 2          # all cases of others
    python -m benchmarks.residual_errors --only bottlenecks   # networks whose name holds this
    python -m benchmarks.residual_errors --images             # and the images by a descent from a decoded start, slower

For every value that is believed and every image: the true relative error of its known activations, and of the
derivative by it, against the stated one; the order of the images is that of the value recovered first, for all. A
violation is a true error over ten times the stated one (or over 2e-6, which a client that computes in float32 cannot
undercut). What is refused is no violation; how far each noise lets peeling go stands beside it. Images count where a
run would believe them: the features are met, and their gradient is within a twentieth of the one that was sent.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from gradinversion.capture import IMAGENET
from gradinversion.peeling.cut import NoCut, decode, find_cut, images_from_cut
from gradinversion.peeling.layers import relative, sizes
from gradinversion.peeling.rules import Derivation, derive
from gradinversion.peeling.rules.knowledge import Known
from torch import Tensor

from .residual_cases import BATCHES, NOISES, OTHERS, Case, make_case, photos
from .residual_shapes import NETWORKS

RESULTS = Path(__file__).parent / "results" / "residual_errors.json"
FACTOR = 10.0
"""How many times its stated error a value may be off."""
# A client computes in float32: its own activations and derivatives are no better known.
_FLOOR = 2e-7
_TOLERANCE = 3e-2
# As a run has them.
_MET, _AGREES, _EVALUATIONS, _CROPS = 1e-3, 0.05, 500, 400
_CROPS_SEED = 10_000
_BINS = (0.0, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0, float("inf"))


@dataclass(frozen=True)
class Figure:
    """One image at one value."""

    value: str
    rule: str
    derivative: bool
    """Of the loss by the value; else its activations."""
    stated: float
    true: float

    @property
    def ratio(self) -> float:
        """True error over stated one."""
        return self.true / max(self.stated, _FLOOR)


@dataclass(frozen=True)
class Outcome:
    """What came of one case."""

    case: str
    network: str
    noise: str
    steps: int
    values: int
    """Of which all activations of every image are known."""
    figures: tuple[Figure, ...]
    seconds: float
    exact_ratio: float | None = None
    """The largest error against exact arithmetic over the stated one, where the truth is the client's own numbers."""

    @property
    def worst(self) -> Figure | None:
        """Farthest off from what was stated."""
        return max(self.figures, key=lambda figure: figure.ratio, default=None)

    @property
    def violates(self) -> bool:
        """Whether something that was stated is false."""
        return self.worst is not None and not self.worst.ratio <= FACTOR


def measure(case: Case, images: bool = False, operations: float = math.inf) -> Outcome:
    """Derive what follows, and compare with the truth.

    Args:
        case: With the truth.
        images: Whether to go on to images where linear equations do not give them.
        operations: Floating-point operations that it may cost.
    """
    began = time.process_time()
    found = derive(
        case.graph,
        case.gradients,
        len(case.images),
        _TOLERANCE,
        operations=operations,
        steps=case.steps,
        step_rate=case.step_rate,
    )
    seconds = time.process_time() - began
    known = found.knowledge
    figures: list[Figure] = []
    exact = list[Figure]()
    if found.steps:
        order = _order(found, case)
        if case.exact is not None:
            exact += _figures(known.activations, case.exact[0], order, derivative=False)
            exact += _figures(known.arriving, case.exact[1], order, derivative=True)
        figures += _figures(known.activations, case.truth, order, derivative=False)
        figures += _figures(known.arriving, case.derivatives, order, derivative=True)
        if images and known.complete(case.graph.images) is None:
            figures += _descended(found, case, order)
    whole = sum(one.complete for one in known.activations.values())
    network = case.name.partition(";")[0]
    ratio = max((figure.ratio for figure in exact), default=None)
    return Outcome(case.name, network, case.noise, len(found.steps), whole, tuple(figures), seconds, ratio)


def _order(found: Derivation, case: Case) -> Tensor:
    """Which true image each recovered one is, by the value that was recovered first."""
    from scipy.optimize import linear_sum_assignment

    first = found.steps[0].value
    ours, true = found.knowledge.activations[first].values.flatten(1), case.truth[first].flatten(1)
    apart = torch.cdist(ours, true, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.as_tensor(linear_sum_assignment(apart.numpy())[1])


def _figures(
    known: Mapping[str, Known], truth: Mapping[str, Tensor], order: Tensor, *, derivative: bool
) -> Iterator[Figure]:
    for value, one in known.items():
        if value not in truth:
            continue
        true = truth[value][order] * one.known
        size = true.flatten(1).norm(dim=1).clamp_min(1e-300)
        off = (one.values * one.known - true).flatten(1).norm(dim=1) / size
        for stated, error in zip(one.error.tolist(), off.tolist(), strict=True):
            yield Figure(value, one.rule, derivative, stated, error)


def _descended(found: Derivation, case: Case, order: Tensor) -> Iterator[Figure]:
    """Each image, where a run would believe all of them."""
    cut = find_cut(found)
    if isinstance(cut, NoCut):
        return
    side = case.images.shape[-1]
    start = decode(cut, photos(_CROPS, side, _CROPS_SEED)).images
    lowest, highest = IMAGENET.bounds(dtype=torch.float64)
    recovered = images_from_cut(cut, start, lowest, highest, _EVALUATIONS)
    least = torch.stack([place.error for place in cut.places]).amax(dim=0).clamp_min(_MET)
    if not bool((recovered.misfit <= least).all()) or not _disagreement(case, recovered.images, order) <= _AGREES:
        return
    true = case.images.double()[order]
    off = (recovered.images - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)
    stated = recovered.error / sizes(recovered.images)
    for image in range(len(off)):
        yield Figure("images", "descent", False, float(stated[image]), float(off[image]))


def _disagreement(case: Case, images: Tensor, order: Tensor) -> float:
    """How far the gradient of images is from the one that was sent, in the weight where it is farthest."""
    weights = {name: one for name, one in case.model.named_parameters() if one.dim() > 1}
    losses = F.cross_entropy(case.model(images.float()), case.labels[order], reduction="none")
    made = torch.autograd.grad((case.factors[order] * losses).mean(), list(weights.values()))
    return max(
        relative(one - case.gradients[name], case.gradients[name]) for name, one in zip(weights, made, strict=True)
    )


def cases(seeds: Sequence[int], only: str, noises: Sequence[str], share: tuple[int, int]) -> Iterator[Case]:
    """Every network with every noise; batches take turns. Of a share ``(i, n)`` each n-th case, from the i-th on."""
    for seed in seeds:
        for row, network in enumerate(NETWORKS):
            for column, noise in enumerate((*NOISES, *OTHERS)):
                batch = BATCHES[(row + column * 3 + seed) % len(BATCHES)]
                if only in network and noise in noises and (row + column) % share[1] == share[0]:
                    yield make_case(network, batch, noise, seed)


def show(outcomes: Sequence[Outcome], noises: Sequence[str] = (*NOISES, *OTHERS)) -> None:
    """One line for each noise, the histogram, and each violation."""
    print("| noise | cases | foothold | values known, median | stated, median | true, median | worst ratio | false |")
    print("|---" * 8 + "|")
    for noise in noises:
        print(_line(noise, [one for one in outcomes if one.noise == noise]))
    figures = [figure for one in outcomes for figure in one.figures]
    print(f"\n{len(outcomes)} cases, {len(figures)} errors; true over stated:")
    for (low, high), count in zip(pairwise(_BINS), histogram(figures), strict=True):
        print(f"  {low:g} to {high:g}: {count}")
    violations = [one for one in outcomes if one.violates]
    print(f"{len(violations)} cases with a false statement")
    for one in violations:
        worst = one.worst
        assert worst is not None
        what = "derivative" if worst.derivative else "activations"
        print(f"  {one.case}: {what} of {worst.value} ({worst.rule}): stated {worst.stated:.1e}, true {worst.true:.1e}")


def histogram(figures: Sequence[Figure]) -> list[int]:
    """How many errors have their ratio in each of the bins."""
    return [sum(low <= figure.ratio < high for figure in figures) for low, high in pairwise(_BINS)]


def _line(noise: str, found: Sequence[Outcome]) -> str:
    kept = [one for one in found if one.figures]
    false = sum(one.violates for one in found)
    figures = [figure for one in kept for figure in one.figures]
    if not figures:
        return f"| {noise} | {len(found)} | {len(kept)} | | | | | {false} |"
    values = median(one.values for one in kept)
    stated, true = median(figure.stated for figure in figures), median(figure.true for figure in figures)
    worst = max(figure.ratio for figure in figures)
    cells = (noise, len(found), len(kept), f"{values:g}", f"{stated:.1e}", f"{true:.1e}", f"{worst:.3g}", false)
    return "| " + " | ".join(map(str, cells)) + " |"


def write(outcomes: Iterable[Outcome], path: Path, before: Sequence[dict[str, Any]] = ()) -> None:
    """Each case with the figure that is farthest off, the histogram and medians of all; behind lines that stay."""
    lines = list(before)
    for one in outcomes:
        line = {key: value for key, value in asdict(one).items() if key != "figures"}
        worst, figures = one.worst, one.figures
        if worst is not None:
            line |= {"worst": asdict(worst) | {"ratio": worst.ratio}, "histogram": histogram(figures)}
            line |= {"stated": median(f.stated for f in figures), "true": median(f.true for f in figures)}
        lines.append(line)
    path.write_text(json.dumps(lines, indent=1) + "\n")


def measure_all(
    chosen: Iterable[Case],
    path: Path,
    before: Sequence[dict[str, Any]] = (),
    images: bool = False,
    operations: float = math.inf,
) -> list[Outcome]:
    """Each case in turn, written as it comes; a false statement is printed at once.

    Args:
        chosen: The cases.
        path: Of the file.
        before: Lines of other cases, which stay.
        images: Whether to go on to the images.
        operations: Floating-point operations that each may cost.
    """
    outcomes = list[Outcome]()
    for case in chosen:
        outcomes.append(measure(case, images, operations))
        before = [line for line in before if line["case"] != case.name]
        write(outcomes, path, before)
        if outcomes[-1].violates:
            print(f"{outcomes[-1].case}: {outcomes[-1].worst}", flush=True)
    return outcomes


def written(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, if there is one."""
    lines: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return lines


def main() -> None:
    """Measure the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", default="", help="networks whose name holds this")
    parser.add_argument("--noises", nargs="+", choices=(*NOISES, *OTHERS), default=(*NOISES, *OTHERS))
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="each N-th case")
    parser.add_argument("--images", action="store_true", help="go on to the images")
    parser.add_argument("--missing", action="store_true", help="only cases that the file lacks, whose lines stay")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = cases(arguments.seeds, arguments.only, arguments.noises, tuple(arguments.share))
    before = written(arguments.out) if arguments.missing else []
    done = {line["case"] for line in before}
    left = (case for case in chosen if case.name not in done)
    show(measure_all(left, arguments.out, before, images=arguments.images))


if __name__ == "__main__":
    main()

"""What defences leave of a residual network's gradient: features, images and who is identified, and what they spend.

    python -m benchmarks.practical_defences                        # every row on set 0; table printed
    python -m benchmarks.practical_defences --only dp_sgd prune    # rows whose name begins so

ResNet-18 with a 3x3 stem and random weights, 32 px, four photos that nothing was tuned on as 8-bit files, batch norm in
evaluation mode, float32, labels not given; one core, seconds of the processor. The attacker is peeling by taps with all
that follows, which allows for each defence as `docs/defences.md` says: noise by the errors that it states, factors of
clipping by the final layer, frozen layers by the others. Noise is relative to the 95th percentile of the entries'
magnitude. *Identified*: first among 200 pictures by the decoded or the recovered image. Epsilon is that of 1,000 such
steps at a sampling rate of 0.01 and delta 1e-5.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gradinversion.audit import constant_images, psnr
from gradinversion.capture import IMAGENET, CapturedUpdate, Defence, capture_gradient, told
from gradinversion.capture.client.defending import apply_defence
from gradinversion.capture.client.dp_sgd import noisy_mean, spent_privacy
from gradinversion.peeling import PeelingConfig
from gradinversion.peeling.recovery import recover_images

from .networks import cifar_resnet18
from .residual_case import Case, case_of
from .residual_case import Row as Network
from .residual_networks import feature_errors, image_figures

RESULTS = Path(__file__).parent / "results" / "practical_defences.json"
_NETWORK = Network("defended", "ResNet-18, 3x3 stem, random", cifar_resnet18, 32, 4)
_SAMPLE_RATE, _STEPS, _DELTA = 0.01, 1000, 1e-5
_MULTIPLIERS = (0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1)
_FRONT = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class Row:
    """One setting of the client."""

    name: str
    defence: Defence | None = None
    frozen: tuple[str, ...] = ()
    """Beginnings of names of parameters that are not trained."""


ROWS = (
    Row("none"),
    *(Row(f"noise {size:g}", Defence("noise", size)) for size in (1e-5, 1e-4, 1e-3, 1e-2)),
    Row("clip 1", Defence("clip", 1.0)),
    *(Row(f"dp_sgd {size:g}, clip 1", Defence("dp_sgd", size, (1.0,))) for size in _MULTIPLIERS),
    *(Row(f"prune {share:g}", Defence("prune", share)) for share in (0.9, 0.99)),
    *(Row(f"quantise {bits}", Defence("quantise", bits)) for bits in (16, 8, 4, 1)),
    Row("frozen to layer1", frozen=_FRONT[:3]),
    Row("frozen to layer3", frozen=_FRONT[:5]),
    Row("head alone", frozen=_FRONT),
)


def run_row(row: Row, number: int) -> dict[str, Any]:
    """One set of photos."""
    case = case_of(_NETWORK, number)
    images, update = case.images, _sent(row, case, number)
    line: dict[str, Any] = {"row": row.name, "set": number}
    line |= {"constant": psnr(constant_images(images), images).tolist()}
    if row.defence is not None and row.defence.name == "dp_sgd":
        line["privacy"] = spent_privacy(row.defence.strength, _SAMPLE_RATE, _STEPS, _DELTA)
    began = time.process_time()
    found = recover_images(update, case.model, PeelingConfig())
    line |= {"seconds": time.process_time() - began, "message": found.message}
    line |= {"steps": [[one.rule, one.value, list(one.shape), max(one.error)] for one in found.steps]}
    if found.cut is not None:
        line |= feature_errors(found.cut, IMAGENET.apply(images.double()))
    line |= image_figures(found, images, _NETWORK)
    if found.error is not None:
        line["stated_error"] = found.error.tolist()
    if found.labels is not None:
        line["labels_right"] = sorted(found.labels.tolist()) == sorted(case.labels.tolist())
    return line


def _sent(row: Row, case: Case, number: int) -> CapturedUpdate:
    """What the server holds."""
    update, random = case.update, torch.Generator().manual_seed(number)
    if row.frozen:
        kept = {name: g for name, g in update.gradients.items() if not name.startswith(row.frozen)}
        return replace(update, gradients=kept)
    if row.defence is None:
        return update
    facts = update.facts.stating(defences=told((row.defence,)))
    if row.defence.name == "dp_sgd":
        ones = zip(case.images.split(1), case.labels.split(1), strict=True)
        each = (capture_gradient(case.model, *one, normalisation=IMAGENET).gradients for one in ones)
        return replace(update, gradients=noisy_mean(each, 1.0, row.defence.strength, random), facts=facts)
    gradients = apply_defence(update.gradients, row.defence.name, row.defence.strength, random)
    return replace(update, gradients=gradients, facts=facts)


def table(lines: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each row, in the order of the rows."""
    head = "defence | set | places | nearest to the images | its error, stated and true | decoded, dB | images, dB"
    found = [f"| {head} | identified | epsilon |", "|---" * 9 + "|"]
    names = [row.name for row in ROWS]
    for line in sorted(lines, key=lambda line: (names.index(line["row"]), line["set"])):
        cut = line.get("cut", [])
        nearest = " x ".join(map(str, cut[0][1])) if cut else "no foothold"
        error = f"{max(one[2] for one in cut):.0e}, {max(one[3] for one in cut):.0e}" if cut else "–"
        seen = line.get("images_identified", line.get("decoded_identified"))
        cells = [line["row"], line["set"], len({step[1] for step in line["steps"]}), nearest, error]
        cells += [_range(line.get(name)) for name in ("decoded", "images")]
        cells += ["–" if seen is None else f"{seen} of 4", _epsilon(line.get("privacy", ""))]
        found.append("| " + " | ".join(map(str, cells)) + " |")
    return found


def _epsilon(privacy: str) -> str:
    return privacy.removeprefix("epsilon ").removeprefix("is ").split(" at ")[0] or "–"


def _range(values: Sequence[float] | None) -> str:
    return "–" if not values else f"{min(values):.1f} to {max(values):.1f}"


def main() -> None:
    """Run the rows that are asked for; what other runs measured of others stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of rows' names")
    parser.add_argument("--sets", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines: list[dict[str, Any]] = json.loads(options.out.read_text()) if options.out.exists() else []
    for row in ROWS:
        for number in options.sets if row.name.startswith(tuple(options.only)) else ():
            lines = [line for line in lines if (line["row"], line["set"]) != (row.name, number)]
            lines.append(run_row(row, number))
            options.out.write_text(json.dumps(lines, indent=1) + "\n")
            print("\n".join(table(lines[-1:])), flush=True)
    print("\n".join(table(lines)))


if __name__ == "__main__":
    main()

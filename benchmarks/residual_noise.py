"""How far noise on the gradient lets peeling by taps go: ResNet-18 with a 3x3 stem, 32 px, four photos.

    python -m benchmarks.residual_noise                        # every noise, about a minute of one core each
    python -m benchmarks.residual_noise --noises 1e-4 float16  # some

Random weights, photos that nothing was tuned on as 8-bit files of the network's size, labels not given. Noise is
Gaussian, relative to the root mean square of each tensor; ``even`` of all together. Of each image recovered the stated
error stands beside the true one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gradinversion.audit import constant_images, psnr
from gradinversion.capture import IMAGENET
from gradinversion.peeling import PeelingConfig
from gradinversion.peeling.recovery import recover_images

from .networks import cifar_resnet18
from .residual import errors, match
from .residual_case import Row, case_of
from .residual_cases import NOISES, OTHERS, disturbed

RESULTS = Path(__file__).parent / "results" / "residual_noise.json"
_ROW = Row("noise", "ResNet-18, 3x3 stem, random", cifar_resnet18, 32, 4)


def measure(noise: str, number: int) -> dict[str, Any]:
    """One noise on one set of photos."""
    case = case_of(_ROW, number)
    update, model, images, labels = case.update, case.model, case.images, case.labels
    update = replace(update, gradients=disturbed(update.gradients, noise, number))
    began = time.process_time()
    found = recover_images(update, model, PeelingConfig())
    line: dict[str, Any] = {"noise": noise, "set": number, "seconds": time.process_time() - began}
    line |= {"steps": [[s.rule, s.value, list(s.shape), max(s.error)] for s in found.steps], "message": found.message}
    line |= {"constant": psnr(constant_images(images), images).tolist()}
    if found.images is not None and found.error is not None:
        pixels = IMAGENET.invert(found.images).clamp(0, 1)
        order = match(pixels, images)
        line |= {"psnr": psnr(pixels[order].to(images), images).tolist(), "stated": found.error[order].tolist()}
        line["true"] = errors(IMAGENET.apply(pixels[order]), IMAGENET.apply(images.double()))
        if found.labels is not None:
            line["labels_right"] = int((found.labels[order] == labels).sum())
    return line


def show(lines: Sequence[dict[str, Any]]) -> None:
    """One line for each noise."""
    print("| noise | set | values | last place, its stated error | images, dB | stated | true | labels | s |")
    print("|---" * 9 + "|")
    for line in lines:
        last = f"{line['steps'][-1][1]}, {line['steps'][-1][3]:.1e}" if line["steps"] else "no foothold"
        decibels = " ".join(f"{value:.1f}" for value in line.get("psnr", [])) or "–"
        stated, true = (f"{max(line[key]):.1e}" if key in line else "–" for key in ("stated", "true"))
        cells = [line["noise"], line["set"], len({step[1] for step in line["steps"]}), last, decibels, stated, true]
        print("| " + " | ".join(map(str, [*cells, line.get("labels_right", "–"), f"{line['seconds']:.0f}"])) + " |")


def main() -> None:
    """Measure the noises that are asked for; what is in the file of others stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noises", nargs="+", choices=(*NOISES, *OTHERS), default=(*NOISES, *OTHERS))
    parser.add_argument("--sets", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    for number in arguments.sets:
        for noise in arguments.noises:
            lines = [one for one in lines if (one["noise"], one["set"]) != (noise, number)]
            lines.append(measure(noise, number))
            arguments.out.write_text(json.dumps(lines, indent=1) + "\n")
    show(lines)


if __name__ == "__main__":
    main()

"""The default attack on residual networks: what it shows of each image, and what its parts are worth.

    python -m benchmarks.residual_attack                       # table printed; json in benchmarks/results/
    python -m benchmarks.residual_attack --agents 1 2 --sets 1 --steps 300

Photos are 8-bit files at the network's size that nothing was tuned on (`unseen_photos`), gradients are in float32,
labels are not given, batch norm runs on its running statistics. Seconds are those of the processor, on one core,
preparation included. PSNR in dB is that of the answer in the order of the labels, not of the best assignment.

Columns: *constant*, the best flat image; *without*, the attack with ``peeling.taps=false``; *start*, the images at
which the first seed begins; *seeds*, each alone; *consensus*, their registered mean; *answer*, what the attack gives.
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
from gradinversion.agents import AgentsConfig
from gradinversion.audit import constant_images, psnr
from gradinversion.capture import IMAGENET
from gradinversion.coordinator import AttackConfig
from gradinversion.coordinator.serial_group import attack
from gradinversion.peeling import PeelingConfig
from gradinversion.target.preparation import prepare
from torch import Tensor

from .residual import ROWS
from .residual_case import Row, case_of

RESULTS = Path(__file__).parent / "results" / "residual_attack.json"
NAMES = [row.name for row in ROWS]


def run(row: Row, number: int, agents: int, steps: int, without: bool) -> dict[str, Any]:
    """One attack, with its parts."""
    case = case_of(row, number)
    update, model = case.update, case.model
    images = case.images[case.labels.argsort(stable=True)]
    config = AttackConfig(agents=AgentsConfig(count=agents, iterations=steps))
    began = time.process_time()
    found = attack(update, model, config).reconstruction
    line: dict[str, Any] = {"row": row.name, "network": row.network, "size": row.size, "batch": row.batch}
    line |= {"set": number, "agents": agents, "steps": steps, "seconds": time.process_time() - began}
    line |= {"constant": _psnr(constant_images(images), images), "answer": _psnr(found.images, images)}
    line["seeds"] = [_psnr(IMAGENET.invert(one.images).clamp(0, 1), images) for one in found.candidates]
    line |= {"consensus": _psnr(found.consensus, images), "messages": list(found.messages)}
    line["known"] = None if found.known is None else [found.known.words, found.known.error]
    start = prepare(update, model, config.request).target.start
    if start is not None:
        line["start"] = _psnr(IMAGENET.invert(start.images).clamp(0, 1).float(), images)
    if without:
        plain = attack(update, model, replace(config, peeling=PeelingConfig(taps=False))).reconstruction
        line["without"] = _psnr(plain.images, images)
    return line


def _psnr(found: Tensor, images: Tensor) -> list[float]:
    values: list[float] = psnr(found, images).tolist()
    return values


def show(lines: Sequence[dict[str, Any]]) -> None:
    """One line for each attack."""
    print("| network | px | B | set | agents | steps | constant | without | start | seeds | consensus | answer | s |")
    print("|---" * 13 + "|")
    for line in lines:
        seeds = " / ".join(_mean(one) for one in line["seeds"])
        cells = [line["network"], line["size"], line["batch"], line["set"], line["agents"], line["steps"]]
        cells += [_mean(line["constant"]), _mean(line.get("without")), _mean(line.get("start")), seeds]
        cells += [_mean(line["consensus"]), _mean(line["answer"]), f"{line['seconds']:.0f}"]
        print("| " + " | ".join(map(str, cells)) + " |")


def _mean(values: Sequence[float] | None) -> str:
    return "–" if not values else f"{sum(values) / len(values):.1f}"


def main() -> None:
    """Run the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=["cifar-random-4", "resnet18-64-4"], choices=NAMES)
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--agents", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--without", action="store_true", help="also the attack without taps, which takes longer")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for row in (row for row in ROWS if row.name in options.rows):
        for number in range(options.sets):
            for agents in options.agents:
                without = options.without and agents == options.agents[0]
                lines.append(run(row, number, agents, options.steps, without))
                print(json.dumps({key: value for key, value in lines[-1].items() if key != "messages"}), flush=True)
    options.out.write_text(json.dumps(lines, indent=1) + "\n")
    show(lines)


if __name__ == "__main__":
    main()

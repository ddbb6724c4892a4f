"""The default attack on residual networks: what it shows of each image, and what its parts are worth.

    python -m benchmarks.residual_attack                       # table printed; json in benchmarks/results/
    python -m benchmarks.residual_attack --agents 1 2 --sets 1 --steps 300
    python -m benchmarks.residual_attack --agents 1 2 --steps 600 --shared     # 600 steps in all, however many agents

Photos are 8-bit files at the network's size that nothing was tuned on (`unseen_photos`), gradients are in float32,
labels are not given, batch norm runs on its running statistics. Seconds are those of the processor, on one core,
preparation included, which is made once for each set. PSNR in dB is that of the answer in the order of the labels,
not of the best assignment.

Columns: *constant*, the best flat image; *without*, the attack with ``peeling.taps=false``; *start*, the images at
which the first seed begins; *seeds*, each alone; *consensus*, their registered mean; *answer*, what the attack gives.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from gradinversion.agents import AgentsConfig
from gradinversion.audit import constant_images, psnr
from gradinversion.capture import IMAGENET
from gradinversion.coordinator import AttackConfig, coordinator
from gradinversion.coordinator.serial_group import attack
from gradinversion.peeling import PeelingConfig
from gradinversion.target.preparation import prepare
from torch import Tensor

from .residual import ROWS
from .residual_case import Row, case_of

RESULTS = Path(__file__).parent / "results" / "residual_attack.json"
NAMES = [row.name for row in ROWS]
_KEYS = ("row", "set", "agents", "steps")


def run(row: Row, number: int, counts: Sequence[int], steps: int, shared: bool, without: bool) -> list[dict[str, Any]]:
    """The attacks on one set of photos, with their parts; what comes before the agents is the same for all."""
    case = case_of(row, number)
    update, model = case.update, case.model
    images = case.images[case.labels.argsort(stable=True)]
    began = time.process_time()
    prepared = prepare(update, model, AttackConfig().request)
    preparation = time.process_time() - began
    same: dict[str, Any] = {"row": row.name, "network": row.network, "size": row.size, "batch": row.batch}
    same |= {"set": number, "preparation": preparation, "constant": _psnr(constant_images(images), images)}
    start = prepared.target.start
    if start is not None:
        same["start"] = _psnr(IMAGENET.invert(start.images).clamp(0, 1).float(), images)
    if without:
        config = AttackConfig(agents=AgentsConfig(count=counts[0], iterations=steps), peeling=PeelingConfig(taps=False))
        same["without"] = _psnr(attack(update, model, config).reconstruction.images, images)
    lines = []
    for agents in counts:
        config = AttackConfig(agents=AgentsConfig(count=agents, iterations=steps // agents if shared else steps))
        began = time.process_time()
        with patch.object(coordinator, "prepare", lambda *_: prepared):
            found = attack(update, model, config).reconstruction
        line = same | {"agents": agents, "steps": config.agents.iterations, "answer": _psnr(found.images, images)}
        line["seconds"] = preparation + time.process_time() - began
        line["seeds"] = [_psnr(IMAGENET.invert(one.images).clamp(0, 1), images) for one in found.candidates]
        line |= {"consensus": _psnr(found.consensus, images), "messages": list(found.messages)}
        line["known"] = None if found.known is None else [found.known.words, found.known.error]
        lines.append(line)
    return lines


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
    parser.add_argument("--first", type=int, default=0, help="number of the first set")
    parser.add_argument("--agents", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--shared", action="store_true", help="the steps are those of all agents together")
    parser.add_argument("--without", action="store_true", help="also the attack without taps, which takes longer")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines: list[dict[str, Any]] = json.loads(options.out.read_text()) if options.out.exists() else []
    for row in (row for row in ROWS if row.name in options.rows):
        for number in range(options.first, options.first + options.sets):
            for line in run(row, number, options.agents, options.steps, options.shared, options.without):
                lines = [one for one in lines if any(one[key] != line[key] for key in _KEYS)] + [line]
                options.out.write_text(json.dumps(lines, indent=1) + "\n")
                print(json.dumps({key: value for key, value in line.items() if key != "messages"}), flush=True)
    show(lines)


if __name__ == "__main__":
    main()

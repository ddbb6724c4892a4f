"""What the benchmark of registration asks for, and whether the numbers meet it."""

from __future__ import annotations

import time
from typing import Any

import torch

from .registration_measures import Method
from .registration_scenes import PHOTOS, SEVERITIES, make_trial

BAR_CELLS = (
    (224, 0.05, 1),
    (224, 0.08, 1),
    (224, 0.05, 2),
    (224, 0.05, 3),
    (224, 0.0, 0),
    (64, 0.05, 1),
    (64, 0.05, 3),
    (64, 0.0, 0),
    (32, 0.05, 2),
    (32, 0.0, 0),
)
DEFAULT = "ours wiener"


def speeds(running: dict[str, Method]) -> list[dict[str, Any]]:
    """Milliseconds of processor time per candidate image, best of five, for batches of one and four images."""
    rows: list[dict[str, Any]] = []
    names = PHOTOS["tune"]
    for size in (224, 64, 32):
        images = [make_trial(names, photo, size, 0.05, SEVERITIES[1], 0, 8).candidates for photo in range(4)]
        for batch in (1, 4):
            candidates = torch.cat(images[:batch], dim=1)
            found = {name: _best(run, candidates) for name, run in running.items() if name in (DEFAULT, "dis")}
            rows.append({"size": size, "batch": batch, "ms": found})
    return rows


def _best(run: Method, candidates: torch.Tensor) -> float:
    run(candidates)
    taken = []
    for _ in range(5):
        started = time.process_time()
        run(candidates)
        taken.append(time.process_time() - started)
    return 1000 * min(taken) / (candidates.shape[0] * candidates.shape[1])


def judge(lines: list[dict[str, Any]], timings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per bar that the lines can answer: the bar, what was found, whether it is met."""
    table = {(line["size"], line["jitter"], line["severity"], line["method"]): line for line in lines}
    verdicts: list[dict[str, Any]] = []

    def add(bar: str, met: bool, found: str) -> None:
        verdicts.append({"bar": bar, "met": bool(met), "found": found})

    def of(size: int, jitter: float, severity: int, method: str = DEFAULT) -> dict[str, Any] | None:
        return table.get((size, jitter, severity, method))

    for size, jitter, severity, share, gain, failures in (
        (224, 0.05, 1, 0.30, 4.0, 0.02),
        (224, 0.05, 2, 0.45, 2.0, 1.0),
        (64, 0.05, 1, 9.0, 3.0, 1.0),
    ):
        line = of(size, jitter, severity)
        if line:
            bar = f"{size} px, {jitter:.0%}, severity {severity}: gain >= {gain} dB"
            bar += f", error <= {share} x identity" if share < 9 else ""
            bar += f", failures <= {failures:.0%}" if failures < 1 else ""
            met = line["error_share"] <= share and line["gain"] >= gain and line["failures"] <= failures
            add(bar, met, f"{line['gain']:+.2f} dB, {line['error_share']:.2f} x, {line['failures']:.1%}")
    mine, theirs = of(224, 0.08, 1), of(224, 0.08, 1, "dis")
    if mine and theirs:
        ahead = mine["psnr"] - theirs["psnr"]
        add("224 px, 8%, severity 1: PSNR >= DIS + 0.5 dB", ahead >= 0.5, f"{ahead:+.2f} dB")
    own = [line for line in lines if line["method"] == DEFAULT]
    hard = [line for line in own if line["severity"] == 3 or (line["size"] == 32 and line["severity"] == 2)]
    if hard:
        worst = min(line["worst_gain"] for line in hard)
        bar = "severity 3 and 32 px severity 2: no trial under the plain mean - 0.1 dB"
        add(bar, worst >= -0.1, f"worst trial {worst:+.2f} dB")
    still = [line for line in own if line["jitter"] == 0 and line["severity"] == 0]
    if still:
        error, gain = max(line["error"] for line in still), min(line["gain"] for line in still)
        bar = "aligned input: error <= 0.2 px, PSNR >= plain mean - 0.05 dB"
        add(bar, error <= 0.2 and gain >= -0.05, f"{error:.2f} px, {gain:+.2f} dB")
    ahead_of = [
        (line["gain"] - peer["gain"], line)
        for line in own
        if line["size"] >= 64 and (peer := of(line["size"], line["jitter"], line["severity"], "dis"))
    ]
    if ahead_of:
        least, line = min(ahead_of, key=lambda pair: pair[0])
        cell = f"{line['size']} px, {line['jitter']:.0%}, severity {line['severity']}"
        add(
            f"all {len(ahead_of)} cells of 224 and 64 px: PSNR >= DIS - 0.1 dB", least >= -0.1, f"{least:+.2f} ({cell})"
        )
    for row in timings:
        if "dis" in row["ms"] and DEFAULT in row["ms"]:
            mine_ms, dis_ms = row["ms"][DEFAULT], row["ms"]["dis"]
            bar = f"{row['size']} px, batch {row['batch']}: time <= 2 x DIS"
            add(bar, mine_ms <= 2 * dis_ms, f"{mine_ms:.1f} and {dis_ms:.1f} ms per candidate image")
    return verdicts

"""How well registration brings the candidates of several seeds together, on photos with known warps.

    python -m benchmarks.registration            # 10 photos x 3 seeds, every cell (about 20 minutes on one core)
    python -m benchmarks.registration --quick    # 3 photos, 1 seed, the cells with a bar
    python -m benchmarks.registration --page     # also a page of panels and flow fields

N candidates of a photo are made by corner-jitter homographies plus an elastic displacement, then degraded. The shared
warp is taken out of the truth as well (the corner jitter and the elastic field of the N candidates sum to zero), since
no method that sees the candidates alone can know it. Reported per cell: end-point error in pixels and as a share of
the identity's (weighted by texture, a border of 8 % left out), failures (share of candidates whose error is above the
identity's), PSNR and SSIM of the consensus after a gain and offset per channel, the gain in PSNR over the plain mean of
the same trial with its 95 % bootstrap interval, and milliseconds of processor time per candidate.

The peers (`registration_peers.py`) need OpenCV. Methods named in `ONCE` run on the first seed alone, those in
`SLOW` at 5 % jitter alone. Constants of the
registration were chosen on the `tune` photos; the table is for the `report` photos. Results go to
`benchmarks/results/registration.json`, with the bars; with `--only` the other cells, and with `--methods` the other
methods of a cell, keep what they had there. Speed is timed again only where the default is among the methods.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .registration_bars import BAR_CELLS, DEFAULT, judge, speeds
from .registration_measures import Method, endpoint_errors, measure, summarise
from .registration_page import write_page
from .registration_peers import methods
from .registration_scenes import PHOTOS, SEVERITIES, make_trial

ONCE = ("coarse", "ours huber", "dis wiener", "ecc", "sift")
SLOW = ("ecc", "sift")
RESULTS = Path(__file__).parent / "results" / "registration.json"


def cells(quick: bool) -> list[tuple[int, float, int]]:
    """(size, jitter, severity) of every cell."""
    if quick:
        return list(BAR_CELLS)
    return [
        (size, jitter, level)
        for size in (224, 64, 32)
        for jitter in (0.05, 0.08, 0.02, 0.0)
        for level in (range(4) if jitter else range(2))
    ]


def run_cell(
    cell: tuple[int, float, int], names: tuple[str, ...], seeds: int, candidates: int, running: dict[str, Method]
) -> list[dict[str, Any]]:
    """One line per method."""
    size, jitter, level = cell
    rows = []
    for seed in range(seeds):
        for photo in range(len(names)):
            trial = make_trial(names, photo, size, jitter, SEVERITIES[level], seed, candidates)
            identity = endpoint_errors(trial, torch.zeros(candidates, 1, size, size, 2))
            for name, run in running.items():
                if (seed == 0 or name not in ONCE) and (jitter == 0.05 or name not in SLOW):
                    rows.append(measure(name, run, trial, identity) | {"seed": seed, "photo": photo})
    return summarise({"size": size, "jitter": jitter, "severity": level}, rows)


def earlier(out: Path | None) -> dict[str, Any]:
    """What an earlier run left in the file."""
    if out is None or not out.is_file():
        return {"lines": [], "speed": []}
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def merged(before: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of an earlier run, with those of the cells and methods that were run now in their place."""
    now = {_key(line): line for line in found}
    return [now.pop(_key(line), line) for line in before] + list(now.values())


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[part] for part in ("size", "jitter", "severity", "method"))


def show(line: dict[str, Any]) -> None:
    """One line of the table."""
    share = "    -" if line["error_share"] is None else f"{line['error_share']:5.2f}"
    print(
        f"{line['size']:4} {100 * line['jitter']:3.0f} {line['severity']:3} {line['method']:12}{line['trials']:4}"
        f"{line['error']:7.2f} {share} {100 * line['failures']:5.1f} {line['psnr']:6.2f} {line['gain']:+5.2f}"
        f" [{line['gain_low']:+5.2f} {line['gain_high']:+5.2f}] {line['worst_gain']:+5.2f} {line['ssim']:5.3f}"
        f" {line['ms']:6.1f}",
        flush=True,
    )


def parse() -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 photos, 1 seed, only the cells with a bar")
    parser.add_argument("--photos", choices=tuple(PHOTOS), default="report")
    parser.add_argument("--count", type=int, help="use this many photos")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--only", help="cells to run, for example 224:0.05:1,64:0.05:1")
    parser.add_argument("--methods", nargs="+", help="methods to run beside the plain mean")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="json; cells that are not run keep their lines there")
    parser.add_argument(
        "--page", type=Path, nargs="?", const=Path("out/registration.html"), help="write panels here and stop"
    )
    return parser.parse_args()


def main() -> None:
    """Print the table and write its numbers, or write the page."""
    options = parse()
    torch.set_num_threads(options.threads)
    running = methods()
    if options.page:
        write_page(options.page, running, RESULTS)
        print(f"panels and flow fields: {options.page}")
        return
    if options.methods:
        running = {name: run for name, run in running.items() if name in ("none", *options.methods)}
    names = PHOTOS[options.photos][: options.count or (3 if options.quick else None)]
    seeds = options.seeds or (1 if options.quick else 3)
    chosen = cells(options.quick)
    if options.only:
        chosen = [(int(a), float(b), int(c)) for a, b, c in (cell.split(":") for cell in options.only.split(","))]
    out = options.out or (None if options.quick else RESULTS)
    print(f"{options.photos} photos: {', '.join(names)}; {seeds} seeds; {options.candidates} candidates")
    print("size  % sev method    trials  error share fail%   psnr  gain [95 % interval] worst  ssim  ms/candidate")
    before = earlier(out)
    lines: list[dict[str, Any]] = before["lines"]
    facts: dict[str, Any] = {"severities": [asdict(severity) for severity in SEVERITIES], "photos": names}
    for cell in chosen:
        found = run_cell(cell, names, seeds, options.candidates, running)
        for line in found:
            show(line)
        lines = merged(lines, found)
        if out:  # after each cell, so that a run that is cut short leaves what it has
            out.parent.mkdir(exist_ok=True)
            out.write_text(json.dumps(before | facts | {"lines": lines}, indent=1) + "\n")
    timings = speeds(running) if DEFAULT in running else before["speed"]
    verdicts = judge(lines, timings)
    for verdict in verdicts:
        print(f"{'met   ' if verdict['met'] else 'MISSED'} {verdict['bar']}: {verdict['found']}")
    if out:
        out.write_text(json.dumps(facts | {"speed": timings, "bars": verdicts, "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Do images with a high loss leak more, and from what stage of training on?

    python -m benchmarks.exposure      # about ten minutes on one core; json in benchmarks/results/, table printed

ConvNet-32 learns to tell crops of ten photos apart (all from scikit-image) and is attacked at several stages, with the
running statistics of its training. A batch holds three crops of those photos and one of a photo that the network never
saw. Each batch comes twice: once the first crop has a wrong label, once the second and the third; so each crop is seen
both with the label that the network learns and with another one, in the same company. One agent, in this process,
given labels, with layer peeling (`default`) and without (`no peeling`); where peeling stops at once the two are one
attack, which is not run twice.

Loss and share of the gradient norm are those of `audit/exposure.py`; the gain is the PSNR above the image's own
constant image, and an image with 3 dB of it counts as leaked. Columns with three values are means over crops with the
right label, with a wrong one, and over unseen photos. Spearman's rank correlation with the gain and the paired
difference (the same crop with the wrong label minus with the right one) have 95 % bootstrap intervals; whole batches
are drawn, since images of one batch are not independent.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gradinversion.agents import Agent, AgentsConfig
from gradinversion.audit import constant_images, psnr
from gradinversion.audit.exposure import measure_exposure, rank_correlation
from gradinversion.capture import Normalisation, PrivateBatch, capture_gradient, load_images, load_model
from gradinversion.coordinator import AttackConfig
from gradinversion.peeling import PeelingConfig
from gradinversion.target.preparation import prepare
from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results" / "exposure.json"
CENTRED = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
STAGES = (0, 20, 200, 1000)
"""Training steps; the network tells the photos apart at the last two."""
ATTACKS = {"default": PeelingConfig(), "no peeling": PeelingConfig(enabled=False)}
CLASSES, SIZE, BATCH = 10, 32, 4
SEEN = (0, 1, 2, 3, 4, 6, 7, 9, 10, 11)
"""Places of the learnt photos among the built-in ones; those of `UNSEEN` have other sources."""
UNSEEN = (5, 8, 21)
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A batch in order of label, and what the network knows of each image."""

    private: PrivateBatch
    kinds: tuple[str, ...]
    """``"right"``, ``"wrong"`` or ``"unseen"``."""
    crops: tuple[int, ...]
    """Which crop of the batch each image is; the same in both versions."""


def crop(photos: Tensor, places: Sequence[int], generator: torch.Generator) -> Tensor:
    """One random crop of each photo named."""
    corners = torch.randint(0, photos.shape[-1] - SIZE + 1, (len(places), 2), generator=generator).tolist()
    return torch.stack([photos[k, :, i : i + SIZE, j : j + SIZE] for k, (i, j) in zip(places, corners, strict=True)])


def make_stages(photos: Tensor) -> dict[int, tuple[dict[str, Tensor], float]]:
    """Weights and accuracy on fresh crops after each number of steps; batch norm's momentum is that of PyTorch."""
    model = load_model("convnet", CLASSES, SIZE, seed=0)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    stages = {}
    for step in range(max(STAGES) + 1):
        if step in STAGES:
            state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            stages[step] = state, accuracy(model.eval(), photos)
        model.train()
        labels = torch.randint(0, CLASSES, (32,), generator=generator)
        inputs = CENTRED.apply(crop(photos, [SEEN[k] for k in labels], generator))
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return stages


def accuracy(model: nn.Module, photos: Tensor) -> float:
    """Share of 500 fresh crops that the network names rightly."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(CLASSES).repeat(50)
    with torch.no_grad():
        named = model(CENTRED.apply(crop(photos, [SEEN[k] for k in labels], generator))).argmax(1)
    return float((named == labels).float().mean())


def make_cases(photos: Tensor, batches: int) -> list[tuple[int, Case]]:
    """Both versions of each batch, with the number of the batch."""
    cases = []
    for batch in range(batches):
        generator = torch.Generator().manual_seed(100 + batch)
        order = torch.randperm(CLASSES, generator=generator).tolist()
        classes, spare = order[:3], order[3:]
        images = crop(photos, [SEEN[k] for k in classes] + [UNSEEN[batch % len(UNSEEN)]], generator)
        for wrong in ((0,), (1, 2)):
            labels = [spare[k] if k in wrong else classes[k] for k in range(3)] + [spare[3]]
            kinds = ["wrong" if k in wrong else "right" for k in range(3)] + ["unseen"]
            rank = sorted(range(BATCH), key=labels.__getitem__)
            private = PrivateBatch(images[rank], torch.tensor(sorted(labels)), tuple(kinds[k] for k in rank))
            cases.append((batch, Case(private, private.names, tuple(rank))))
    return cases


def attack(model: nn.Module, case: Case, peeling: PeelingConfig, steps: int, seed: int) -> Rows:
    """One agent's descent on the update of a case; one row per image."""
    private = case.private
    update = capture_gradient(model, private.images, private.labels, normalisation=CENTRED)
    labels = ",".join(map(str, private.labels.tolist()))
    config = AttackConfig(labels=labels, peeling=peeling, agents=AgentsConfig(count=1, iterations=steps))
    target = prepare(update, model, config.request).target
    agent = Agent(target, config.objective, config.agents, seed)
    agent.run(steps)
    images = CENTRED.invert(agent.images).clamp(0, 1)
    gains = (psnr(images, private.images) - psnr(constant_images(private.images), private.images)).tolist()
    exposure = measure_exposure(model, private, update)
    columns = zip(case.kinds, case.crops, exposure.losses, exposure.shares, gains, strict=True)
    return [
        {"kind": kind, "crop": place, "loss": loss, "share": share, "gain": gain, "peeled": target.anchor is not None}
        for kind, place, loss, share, gain in columns
    ]


def paired(rows: Rows) -> float:
    """Mean gain of the same crops with the wrong label over that with the right one."""
    gains = {(row["batch"], row["crop"], row["kind"]): row["gain"] for row in rows}
    pairs = [(gain, gains[batch, place, "right"]) for (batch, place, kind), gain in gains.items() if kind == "wrong"]
    return float(np.mean([wrong - right for wrong, right in pairs]))


def within(rows: Rows) -> float:
    """Mean over the batches of the rank correlation of share and gain inside each."""
    groups: dict[tuple[int, int], Rows] = {}
    for row in rows:
        groups.setdefault((row["batch"], row["version"]), []).append(row)
    values = [rank_correlation([r["share"] for r in own], [r["gain"] for r in own]) for own in groups.values()]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def correlation(key: str) -> Callable[[Rows], float]:
    """Of this column with the gain, over all images."""

    def measure(rows: Rows) -> float:
        found = rank_correlation([row[key] for row in rows], [row["gain"] for row in rows])
        return float("nan") if found is None else found

    return measure


MEASURES: dict[str, Callable[[Rows], float]] = {
    "loss_correlation": correlation("loss"),
    "share_correlation": correlation("share"),
    "share_correlation_within": within,
    "wrong_minus_right": paired,
}


def interval(rows: Rows, measure: Callable[[Rows], float], draws: int = 1000) -> list[float]:
    """The measure and its 95 % bootstrap interval; whole batches are drawn, each draw as a batch of its own."""
    generator = np.random.default_rng(0)
    batches = sorted({row["batch"] for row in rows})
    own = {batch: [row for row in rows if row["batch"] == batch] for batch in batches}
    values = []
    for _ in range(draws):
        drawn = generator.choice(batches, len(batches))
        values.append(measure([row | {"batch": new} for new, old in enumerate(drawn) for row in own[int(old)]]))
    low, high = np.nanquantile(values, (0.025, 0.975))
    return [measure(rows), float(low), float(high)]


def summarise(rows: Rows) -> Rows:
    """One line per stage and attack."""
    lines = []
    for stage, name in dict.fromkeys((row["stage"], row["attack"]) for row in rows):
        own = [row for row in rows if (row["stage"], row["attack"]) == (stage, name)]
        line: dict[str, Any] = {"stage": stage, "attack": name, "images": len(own), "accuracy": own[0]["accuracy"]}
        line["peeled"] = float(np.mean([row["peeled"] for row in own]))
        for kind in ("right", "wrong", "unseen"):
            these = [row for row in own if row["kind"] == kind]
            line[kind] = {key: float(np.mean([row[key] for row in these])) for key in ("loss", "share", "gain")}
            line[kind]["leaked"] = float(np.mean([row["gain"] >= 3 for row in these]))
        lines.append(line | {key: interval(own, measure) for key, measure in MEASURES.items()})
    return lines


def show(lines: Rows) -> None:
    """The table of docs/audit.md."""
    names = ["steps (accuracy)", "attack", "loss", "gain in dB", "leaked", "Spearman: loss", "share"]
    print("| " + " | ".join([*names, "share within batch", "wrong - right, dB"]) + " |\n" + "|---" * 9 + "|")
    for line in lines:
        kinds = [line[kind] for kind in ("right", "wrong", "unseen")]
        cells = [f"{line['stage']} ({line['accuracy']:.0%})", f"{line['attack']} ({line['peeled']:.0%} peeled)"]
        cells += [" / ".join(f"{kind['loss']:.2f}" for kind in kinds), " / ".join(f"{k['gain']:+.1f}" for k in kinds)]
        cells += [" / ".join(f"{kind['leaked']:.0%}" for kind in kinds)]
        cells += ["{:+.2f} [{:+.2f}, {:+.2f}]".format(*line[key]) for key in list(MEASURES)[:3]]
        cells += ["{:+.1f} [{:+.1f}, {:+.1f}]".format(*line["wrong_minus_right"])]
        print("| " + " | ".join(cells) + " |", flush=True)


def is_same_attack(row: dict[str, Any], facts: dict[str, Any]) -> bool:
    """Whether this row is of the same update, and peeling had stopped before it changed anything."""
    return not row["peeled"] and all(row[key] == facts[key] for key in ("stage", "batch", "version"))


def read_rows(path: Path, steps: int, batches: int) -> Rows:
    """What an earlier run with the same settings has measured."""
    if not path.is_file():
        return []
    found = json.loads(path.read_text())
    return list(found["rows"]) if (found["steps"], found["batches"]) == (steps, batches) else []


def main() -> None:
    """Print the table and write its numbers; a run that was stopped goes on where it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=6, help="each comes in two versions")
    parser.add_argument("--steps", type=int, default=300, help="of the one agent")
    parser.add_argument("--stages", type=int, nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    photos, _ = load_images("photos", 24, 2 * SIZE)
    stages = make_stages(photos)
    cases = make_cases(photos, options.batches)
    rows = read_rows(options.out, options.steps, options.batches)
    for stage in options.stages:
        state, share = stages[stage]
        model = load_model("convnet", CLASSES, SIZE, seed=0)
        model.load_state_dict(state)
        for name, peeling in ATTACKS.items():
            if any((row["stage"], row["attack"]) == (stage, name) for row in rows):
                continue
            for number, (batch, case) in enumerate(cases):
                facts = {"stage": stage, "accuracy": share, "attack": name, "batch": batch, "version": number % 2}
                same = [row for row in rows if is_same_attack(row, facts)]
                found = same or attack(model, case, peeling, options.steps, seed=batch)
                rows += [row | facts for row in found]
            rows.sort(key=lambda row: (row["stage"], row["attack"], row["batch"], row["version"]))
            settings = {"steps": options.steps, "batches": options.batches}
            options.out.parent.mkdir(exist_ok=True)
            options.out.write_text(json.dumps(settings | {"lines": summarise(rows), "rows": rows}, indent=1) + "\n")
    show(summarise(rows))


if __name__ == "__main__":
    main()

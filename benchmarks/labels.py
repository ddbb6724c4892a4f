"""Labels read off the gradient: `python -m benchmarks.labels` measures all rows and adds them to results/labels.json.

    python -m benchmarks.labels repeats --only resnet50 --batch 24   # some rows; the others stay as they are
    python -m benchmarks.labels --table                              # what is in the json, as in docs/labels.md

Random weights: unique and repeated labels of 1,000 classes. Trained networks: repeats at batch 24, at several training
accuracies, on training images and on images that were held out. Each row is compared with the method of before (counts
without separation) and with a guess that spreads labels evenly.

The networks run in evaluation mode, so each image's features are computed once, and a batch's gradient of the final
layer is computed by automatic differentiation in float32 from them. Method constants were chosen on batches with seeds
below 100; batches here have seeds from 100 on.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gradinversion.audit.label_scores import LabelScores, score_labels
from gradinversion.capture import IMAGENET, BatchNormMode, CapturedUpdate, RecoveredLabels, load_model, recover_labels
from gradinversion.capture.facts import CROSS_ENTROPY, known_facts
from torch import Tensor, nn

from .label_networks import STAGES, Task, accuracy, digits, regions, train_stages

RESULTS = Path(__file__).parent / "results" / "labels.json"
FIRST_SEED = 100
UNTRAINED = (("resnet18", 64), ("resnet50", 64))
PARTS = ("unique", "repeats", "digits-convnet", "digits-resnet18", "regions-convnet", "regions-resnet18")
_SURE = 0.9
_NAMES = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "convnet": "ConvNet-32"}


@dataclass(frozen=True)
class Pool:
    """Images as the final layer of one network sees them."""

    model: nn.Module
    layer: str
    features: Tensor
    labels: Tensor
    size: int

    def update(self, indices: Tensor, labels: Tensor) -> CapturedUpdate:
        """The update of a client whose batch are these images; only the final layer's gradient is filled in."""
        layer = self.model.get_submodule(self.layer)
        assert isinstance(layer, nn.Linear)
        loss = F.cross_entropy(layer(self.features[indices]), labels)
        weight, bias = torch.autograd.grad(loss, [layer.weight, layer.bias])
        return CapturedUpdate(
            gradients={f"{self.layer}.weight": weight, f"{self.layer}.bias": bias},
            image_shape=(3, self.size, self.size),
            model_id=type(self.model).__name__,
            weight_hash="",
            facts=known_facts(len(labels), IMAGENET, BatchNormMode.EVAL, CROSS_ENTROPY),
        )


@torch.no_grad()
def make_pool(model: nn.Module, images: Tensor, labels: Tensor) -> Pool:
    """Runs all images through the network and keeps what reaches its last linear layer."""
    name = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    kept: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    for part in images.split(100):
        model(IMAGENET.apply(part))
    handle.remove()
    return Pool(model, name, torch.cat(kept), labels, images.shape[-1])


def measure(pool: Pool, drawn: Iterator[tuple[Tensor, Tensor]], **facts: Any) -> dict[str, Any]:
    """One row of the table: means over the batches with bootstrap intervals."""
    lines: list[tuple[float, float, float, LabelScores]] = []
    entries: list[tuple[float, bool]] = []
    methods = Counter[str]()
    for indices, labels in drawn:
        update = pool.update(indices, labels)
        found = recover_labels(update, pool.model)
        before = found if found.method != "separation" else recover_labels(update, pool.model, "counts")
        scores, old = score_labels(found.labels, labels), score_labels(before.labels, labels)
        even = torch.randperm(facts["classes"], generator=torch.Generator().manual_seed(len(lines)))
        guess = even.repeat(len(labels) // len(even) + 1)[: len(labels)]
        lines.append((scores.instances, old.instances, score_labels(guess, labels).instances, scores))
        entries += list(zip(found.confidence.tolist(), _right(found, labels), strict=True))
        methods[found.method] += 1
    sure = [right for confidence, right in entries if confidence >= _SURE]
    unsure = [right for confidence, right in entries if confidence < _SURE]
    return facts | {
        "batches": len(lines),
        "methods": dict(methods),
        "instances": _interval([line[0] for line in lines]),
        "before": _interval([line[1] for line in lines]),
        "even_guess": _interval([line[2] for line in lines]),
        "precision": fmean(line[3].precision for line in lines),
        "recall": fmean(line[3].recall for line in lines),
        "class_count": fmean(line[3].class_count for line in lines),
        "sure": {"labels": len(sure), "right": sum(sure)},
        "unsure": {"labels": len(unsure), "right": sum(unsure)},
    }


def _right(found: RecoveredLabels, labels: Tensor) -> list[bool]:
    """For each recovered label whether it is right; of a class that is named too often the most certain entries are."""
    left, right = Counter(labels.tolist()), [False] * len(labels)
    for place in found.confidence.argsort(descending=True, stable=True).tolist():
        label = int(found.labels[place])
        right[place] = left[label] > 0
        left[label] -= 1
    return right


def _interval(values: list[float]) -> dict[str, float]:
    """Mean and the 95 % interval of a bootstrap over the batches."""
    drawn = np.random.default_rng(0).choice(values, (2000, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"mean": fmean(values), "low": float(low), "high": float(high)}


def draw(labels: Tensor, batch: int, batches: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches drawn with replacement, with the images' own labels."""
    for seed in range(FIRST_SEED, FIRST_SEED + batches):
        chosen = torch.randint(0, len(labels), (batch,), generator=torch.Generator().manual_seed(seed))
        yield chosen, labels[chosen]


def draw_labels(images: int, classes: int, batch: int, batches: int, unique: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches with labels of their own: drawn at random from all classes, without repeats where ``unique``."""
    for seed in range(FIRST_SEED, FIRST_SEED + batches):
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(images, generator=generator)[:batch]
        if unique:
            yield chosen, torch.randperm(classes, generator=generator)[:batch]
        else:
            # A random half of the batch repeats the other half, so that there are repeats among 1,000 classes.
            few = torch.randint(0, classes, (max(batch // 2, 1),), generator=generator)
            yield chosen, few[torch.randint(0, len(few), (batch,), generator=generator)]


def untrained(part: str, batches: int, networks: Sequence[str], batch_sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Random weights, 1,000 classes: unique labels at batch 8 to 48, or repeats at batch 24 and 512."""
    photos = regions()
    chosen = torch.randperm(len(photos.labels), generator=torch.Generator().manual_seed(0))[:512]
    for network, size in UNTRAINED:
        if network not in networks:
            continue
        images = F.interpolate(photos.images[chosen], size=(size, size), mode="bilinear")
        pool = make_pool(load_model(network, 1000, size), images, photos.labels[chosen])
        for batch in (8, 16, 24, 48) if part == "unique" else (24, 512):
            if batch not in batch_sizes:
                continue
            drawn = draw_labels(len(images), 1000, batch, batches, part == "unique")
            facts = {"part": part, "network": network, "classes": 1000, "size": size, "batch": batch}
            yield measure(pool, drawn, **facts)


def trained(
    part: str, batches: int, folder: Path, asked: Sequence[float], whole_until: float
) -> Iterator[dict[str, Any]]:
    """Repeats at batch 24 on one network at several stages of its training."""
    name, network = part.split("-")
    task: Task = {"digits": digits, "regions": regions}[name]()
    for stage, (model, reached) in train_stages(network, task, 0, folder, asked, whole_until).items():
        for split, images, labels in (
            ("training", task.images, task.labels),
            ("held out", task.held_out_images, task.held_out_labels),
        ):
            pool = make_pool(model, images, labels)
            facts = {"part": part, "network": network, "classes": task.classes, "size": pool.size, "batch": 24}
            facts |= {"whole_network_until": whole_until, "stage": stage, "training_accuracy": reached, "images": split}
            facts |= {"accuracy": accuracy(model, images, labels)}
            yield measure(pool, draw(labels, 24, batches), **facts)


def line(row: dict[str, Any]) -> str:
    """One row as printed."""
    state = "untrained" if "stage" not in row else f"trained to {row['training_accuracy']:.1%}, {row['images']}"
    found, before = row["instances"], row["before"]
    sure, unsure = (f"{row[key]['right']}/{row[key]['labels']}" for key in ("sure", "unsure"))
    return (
        f"{row['part']:17} {row['network']:9} {row['classes']:5} {row['batch']:4}  {state:28} "
        f"{found['mean']:7.2%} [{found['low']:.1%}, {found['high']:.1%}]  before {before['mean']:7.2%}  "
        f"even guess {row['even_guess']['mean']:6.1%}  counts {row['class_count']:6.1%}  "
        f"sure {sure}, unsure {unsure}"
    )


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown, those of docs/labels.md."""
    headings = (
        "network, classes",
        "batch",
        "training accuracy",
        "images",
        "instances recovered",
        "before",
        "even guess",
    )
    lines = ["| " + " | ".join((*headings, "class counts right", "sure and right")) + " |", "|---" * 9 + "|"]
    order = {"resnet18": 0, "resnet50": 1}
    for row in sorted(
        rows, key=lambda row: (PARTS.index(row["part"]), order.get(row["network"], 0), row.get("stage", 0))
    ):
        unique = row["part"] == "unique"
        untrained = not row.get("stage")
        cells = (
            f"{_NAMES[row['network']]}, {row['classes']}",
            f"{row['batch']}, {'unique' if unique else 'repeats'}",
            "untrained" if untrained else f"{row['training_accuracy']:.0%}",
            row.get("images", "–"),
            *(
                f"{row[key]['mean']:.1%} [{row[key]['low']:.1%}, {row[key]['high']:.1%}]"
                for key in ("instances", "before")
            ),
            f"{row['even_guess']['mean']:.1%}",
            f"{row['class_count']:.1%}",
            f"{row['sure']['right']} of {row['sure']['labels']}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("part", "network", "batch", "stage", "images"))


def main() -> None:
    """Measures the parts asked for; other rows stay in the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--batches", type=int, default=10, help="batches per row")
    parser.add_argument("--stages", type=float, nargs="+", default=STAGES, help="training accuracies to measure at")
    parser.add_argument("--whole-until", type=float, default=0.9, help="beyond it only the final layer is trained on")
    parser.add_argument("--networks", type=Path, default=Path("build/labels"), help="folder that keeps trained weights")
    parser.add_argument("--only", nargs="+", choices=[network for network, _ in UNTRAINED], help="untrained networks")
    parser.add_argument("--batch", type=int, nargs="+", default=(8, 16, 24, 48, 512), help="of untrained networks")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    unknown = set(given.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part is called {sorted(unknown)[0]!r}; use some of {', '.join(PARTS)}")
    rows = json.loads(given.out.read_text()) if given.out.exists() else []
    for part in () if given.table else given.parts:
        found = (
            untrained(part, given.batches, given.only or [network for network, _ in UNTRAINED], given.batch)
            if "-" not in part
            else trained(part, given.batches, given.networks, given.stages, given.whole_until)
        )
        for row in found:
            print(line(row), flush=True)
            rows = [kept for kept in rows if _key(kept) != _key(row)] + [row]
            given.out.write_text(json.dumps(rows, indent=1) + "\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()

"""Networks of pointwise and depthwise convolutions peeled: how deep, how exactly, and what images follow.

    python -m benchmarks.pointwise      # rows of EfficientNet-Lite0; json in benchmarks/results/, table printed
    python -m benchmarks.pointwise --rows mobilenetv2-64-4    # its weights are in HDF5, which h5py reads
    python -m benchmarks.pointwise --rows lite0-64-4 --sets 1 --features    # features alone, without images
    python -m benchmarks.pointwise --rows lite0-64-4 --sets 0 --features --noises 1e-4 float16 --out noise.json

One core; seconds are those of the processor. Photos are 8-bit files at the network's size that nothing was tuned on
(`unseen_photos`), gradients are in float32, labels are not given, batch norm runs on its running statistics. An error
is relative, of the image whose activations are known least; `constant` is the best flat image of each, in its own mean
colour, which nobody is told; `public` is one in the mean colour of the public photos, which everybody has. The start is
what a run's seeds begin at, made of the features by a decoder, a small network and a descent with total variation.
`first` counts images whose start is nearer to them than to each of 200 crops of other photos.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from gradinversion.audit import constant_images, psnr, ssim
from gradinversion.peeling import PeelingConfig
from gradinversion.peeling.cut import photo_crops, public_photos
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.recovered import Recovery
from gradinversion.peeling.recovery import recover_images
from gradinversion.peeling.rules import Derivation, derive
from torch import Tensor, nn

from . import imagenet_lite0, imagenet_mobilenet
from .residual_case import Case, Row, case_of
from .residual_cases import NOISES, OTHERS, disturbed
from .residual_networks import timm_network
from .unseen_photos import PhotosError

RESULTS = Path(__file__).parent / "results" / "pointwise.json"
_SURE = 1e-5
_OTHERS, _OTHERS_SEED = 200, 77


def lite0(classes: int) -> nn.Module:
    """The network of `imagenet_lite0`, whose classes are given."""
    return imagenet_lite0.imagenet_lite0()


def mobilenet(classes: int) -> nn.Module:
    """That of `imagenet_mobilenet`."""
    return imagenet_mobilenet.imagenet_mobilenet()


def _row(size: int, batch: int) -> Row:
    name, network = f"lite0-{size}-{batch}", "EfficientNet-Lite0, ImageNet weights"
    return Row(name, network, lite0, size, batch, imagenet_lite0.CLASSES, normalisation=imagenet_lite0.PIXELS)


def _mobilenet(batch: int) -> Row:
    name, network = f"mobilenetv2-64-{batch}", "MobileNetV2, ImageNet weights, fine-tuned"
    own = imagenet_mobilenet
    return Row(name, network, mobilenet, 64, batch, own.CLASSES, normalisation=own.PIXELS)


_LITE0 = tuple(_row(*one) for one in ((64, 4), (64, 2), (64, 8), (96, 4), (128, 1), (224, 1)))
ROWS = (
    *_LITE0,
    *(_mobilenet(batch) for batch in (4, 2)),
    Row("mnasnet-64-4", "MnasNet, random", timm_network("mnasnet_100"), 64, 4),
    Row("efficientnet-b0-64-4", "EfficientNet-B0, random", timm_network("efficientnet_b0"), 64, 4),
)


def run_row(row: Row, number: int, features: bool, config: PeelingConfig, noise: str = "none") -> dict[str, Any]:
    """One set of photos.

    Args:
        row: Which network, how large and how many images.
        number: Of the set of photos.
        features: Whether to leave out the images.
        config: With the operations that are allowed.
        noise: What befalls the gradient, as in `residual_cases`.
    """
    case = case_of(row, number)
    case = replace(case, update=replace(case.update, gradients=disturbed(case.update.gradients, noise, number)))
    graph = network_graph(case.model, case.update.image_shape, case.update.batch_norm, row.batch)
    assert isinstance(graph, Graph)
    line: dict[str, Any] = {"row": row.name, "network": row.network, "size": row.size, "batch": row.batch}
    line |= {"set": number, "noise": noise, "constant": psnr(constant_images(case.images), case.images).tolist()}
    line["public"] = psnr(_public_colour().expand_as(case.images), case.images).tolist()
    line["operations"] = config.operations
    began = time.process_time()
    found = derive(graph, case.update.gradients, row.batch, config.tolerance, operations=config.operations)
    line["seconds"] = time.process_time() - began
    line["places"] = list(_places(found, case))
    line["refused"] = [[one.rule, one.value, one.words] for one in found.refused]
    return line if features else line | _images(recover_images(case.update, case.model, config), case)


def _places(found: Derivation, case: Case) -> list[dict[str, Any]]:
    """Every value that a gradient gave, with its true error and whether its images and places are in their order."""
    graph, places = found.graph, list[dict[str, Any]]()
    if not found.steps:
        return places
    truth = {graph.images: case.update.normalisation.apply(case.images.double())}
    for node in graph.nodes:
        truth[node.name] = node.kind.forward([truth[name] for name in node.inputs], graph.tensors_of(node))
    for value in dict.fromkeys(step.value for step in found.steps):
        known = found.knowledge.activations[value]
        flat, true = known.values.flatten(1), truth[value].flatten(1)
        nearest = torch.cdist(flat, true, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
        error = (flat - true[nearest]).norm(dim=1) / true[nearest].norm(dim=1)
        reader = next((node.name for node in graph.readers(value) if "weight" in node.tensors), value)
        whole = sorted(nearest.tolist()) == list(range(len(true)))
        line = {
            "input of": reader,
            "rule": known.rule,
            "shape": list(known.values.shape[1:]),
            "every image once": whole,
        }
        places.append(line | {"error": error.tolist(), "stated": known.error.tolist()})
    return places


def _images(found: Recovery, case: Case) -> dict[str, Any]:
    """What became of the images."""
    line: dict[str, Any] = {"message": found.message}
    for name, images in (("start", found.start.images if found.start else None), ("images", found.images)):
        if images is None:
            continue
        pixels = case.update.normalisation.invert(images).clamp(0, 1)
        order = _match(pixels, case.images)
        found_pixels = pixels[order].to(case.images)
        line[name] = psnr(found_pixels, case.images).tolist()
        line[f"{name} ssim"] = ssim(found_pixels, case.images).tolist()
        line[f"{name} first"] = _first(found_pixels, case.images)
    return line


def _first(found: Tensor, true: Tensor) -> int:
    """How many reconstructions are nearer to their image than to all other photos, and to the rest of the batch."""
    size = (true.shape[2], true.shape[3])
    others = photo_crops(list(public_photos().values()), size, _OTHERS, _OTHERS_SEED).to(true)
    apart = torch.cdist(found.flatten(1), torch.cat([true, others]).flatten(1))
    return int((apart.argmin(dim=1) == torch.arange(len(true))).sum())


def _public_colour() -> Tensor:
    """The mean colour of public photos, of which channels are exchanged as a decoder's crops are."""
    return torch.stack([photo.mean() for photo in public_photos().values()]).mean().expand(1, 3, 1, 1)


def _match(found: Tensor, true: Tensor) -> list[int]:
    """For each private image the one found that is nearest to it, each taken once."""
    from scipy.optimize import linear_sum_assignment

    apart = (found.flatten(1).double()[None] - true.flatten(1).double()[:, None]).square().mean(dim=2)
    return [int(one) for one in linear_sum_assignment(apart.numpy())[1]]


def printed(line: dict[str, Any]) -> str:
    """One row of the table: the deepest place, and the deepest of those that are exact."""
    exact = [one for one in line["places"] if max(one["error"]) <= _SURE]
    deepest, last = (one[-1] if one else None for one in (line["places"], exact))
    words = [
        "none" if one is None else f"{one['input of']} {max(one['error']):.1e} (stated {max(one['stated']):.1e})"
        for one in (deepest, last)
    ]
    which = line["row"] if line.get("noise", "none") == "none" else f"{line['row']}, {line['noise']}"
    cells = [which, str(line["set"]), *words, f"{line['seconds']:.0f} s"]
    cells += [
        " ".join(f"{value:.1f}" for value in line.get(name, ())) for name in ("constant", "public", "start", "images")
    ]
    cells += [" ".join(f"{value:.2f}" for value in line.get("start ssim", ())), str(line.get("start first", ""))]
    return "| " + " | ".join(cells) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[row.name for row in _LITE0], choices=[row.name for row in ROWS])
    parser.add_argument("--sets", type=int, nargs="*", default=[0, 1, 2], help="numbers of the sets of photos")
    parser.add_argument("--noises", nargs="+", choices=(*NOISES, *OTHERS), default=["none"], help="on the gradient")
    parser.add_argument("--features", action="store_true", help="leave out the images")
    parser.add_argument("--operations", type=float, default=PeelingConfig.operations, help="peeling.operations")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = json.loads(options.out.read_text()) if options.out.exists() else []
    for row in (one for one in ROWS if one.name in options.rows):
        for number, noise in product(options.sets, options.noises):
            try:
                line = run_row(row, number, options.features, PeelingConfig(operations=options.operations), noise)
            # No weights or photos: the other rows go on.
            except PhotosError as error:
                print(f"{row.name}, set {number}: {error}", flush=True)
                continue
            print(printed(line), flush=True)
            own = row.name, number, noise
            lines = [one for one in lines if (one["row"], one["set"], one.get("noise", "none")) != own] + [line]
            options.out.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()

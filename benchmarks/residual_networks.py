"""Other networks than small ResNets: how far peeling by taps goes on each, and what of the images follows.

    python -m benchmarks.residual_networks                          # every row; json in benchmarks/results/
    python -m benchmarks.residual_networks --rows vgg11 densenet121 --sets 1

Float32 gradients, labels not given, batch norm on its running statistics, photos of `unseen_photos` as 8-bit files
of the network's size; seconds are those of the processor. Images are what a linear decoder makes of the features,
fitted on the photos that come with scikit-image, and what a descent of at most `--operations` makes of that.
`identified`: among 200 pictures (the private ones, other unseen photos and public ones) the private image is the one
that its reconstruction would be taken for, by thumbnails of 8 x 8 places without the mean colour.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from gradinversion.audit import constant_images, psnr
from gradinversion.audit.identification import Gallery, make_embedding
from gradinversion.capture import load_images
from gradinversion.peeling import PeelingConfig
from gradinversion.peeling.cut import Cut, photo_crops, public_photos
from gradinversion.peeling.recovered import Recovery
from gradinversion.peeling.recovery import recover_images
from torch import Tensor, nn

from .imagenet_resnet import PIXELS, HalfResNet50
from .residual import match, torchvision_network
from .residual_case import PHOTOS, Row, case_of
from .unseen_photos import write_unseen_photos

RESULTS = Path(__file__).parent / "results" / "residual_networks.json"
GALLERY = 200
# Sets of unseen photos that the gallery is filled up with; none of them is private.
_OTHERS = range(20, 24)


def _vgg(classes: int) -> nn.Module:
    import torchvision

    model: nn.Module = torchvision.models.vgg11_bn(weights=None)
    model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, classes)
    return model


def _googlenet(classes: int) -> nn.Module:
    import torchvision

    model: nn.Module = torchvision.models.googlenet(
        weights=None, num_classes=classes, aux_logits=False, init_weights=False
    )
    return model


def timm_network(name: str, **settings: Any) -> Callable[[int], nn.Module]:
    """One of timm's networks with random weights, given the number of classes."""

    def make(classes: int) -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **settings)
        return model

    return make


ROWS = (
    Row("resnet18-224", "torchvision ResNet-18, random", torchvision_network("resnet18"), 224, 4),
    Row("resnet18-224-8", "torchvision ResNet-18, random", torchvision_network("resnet18"), 224, 8),
    Row("resnet50-224", "torchvision ResNet-50, random", torchvision_network("resnet50"), 224, 4),
    Row("resnet50-224-8", "torchvision ResNet-50, random", torchvision_network("resnet50"), 224, 8),
    Row("imagenet-224-1", "half ResNet-50, ImageNet", HalfResNet50, 224, 1, normalisation=PIXELS),
    Row("imagenet-224-4", "half ResNet-50, ImageNet", HalfResNet50, 224, 4, normalisation=PIXELS),
    Row("resnet50", "torchvision ResNet-50, random", torchvision_network("resnet50"), 64, 4),
    Row("resnet50-8", "torchvision ResNet-50, random", torchvision_network("resnet50"), 64, 8),
    Row("resnet18-8", "torchvision ResNet-18, random", torchvision_network("resnet18"), 64, 8),
    Row("wide-resnet50", "WideResNet-50-2, random", torchvision_network("wide_resnet50_2"), 64, 4),
    Row("resnext50", "ResNeXt-50 32x4d, random", torchvision_network("resnext50_32x4d"), 64, 4),
    Row("densenet121", "DenseNet-121, random", torchvision_network("densenet121"), 64, 4),
    Row("vgg11", "VGG-11-BN, average pooling, random", _vgg, 64, 4),
    Row("googlenet", "GoogLeNet, random", _googlenet, 64, 4),
    Row("resnet26", "timm resnet26, random", timm_network("resnet26"), 64, 4),
    Row(
        "resnet26-open",
        "the same, last batch norms not begun at 0",
        timm_network("resnet26", zero_init_last=False),
        64,
        4,
    ),
    Row("resnet10t", "timm resnet10t, random", timm_network("resnet10t"), 64, 4),
    Row(
        "resnet10t-open",
        "the same, last batch norms not begun at 0",
        timm_network("resnet10t", zero_init_last=False),
        64,
        4,
    ),
)


def run_row(row: Row, number: int, operations: float) -> dict[str, Any]:
    """One set of photos."""
    case = case_of(row, number)
    images = case.images
    began = time.process_time()
    found = recover_images(case.update, case.model, PeelingConfig(operations=operations))
    line: dict[str, Any] = {"row": row.name, "network": row.network, "size": row.size, "batch": row.batch}
    line |= {"set": number, "seconds": time.process_time() - began, "message": found.message}
    line |= {"constant": psnr(constant_images(images), images).tolist(), "operations": operations}
    line |= {"steps": [[one.rule, one.value, list(one.shape), max(one.error)] for one in found.steps]}
    if found.cut is not None:
        line |= feature_errors(found.cut, row.normalisation.apply(images.double()))
    if found.labels is not None:
        line["labels"] = found.labels.tolist()
    return line | image_figures(found, images, row)


def feature_errors(cut: Cut, images: Tensor) -> dict[str, Any]:
    """The cut's places with their stated and true errors, images matched by their features."""
    places = []
    with torch.no_grad():
        true = cut.features(torch.float64, torch.device("cpu"))(images)
    for place, values in zip(cut.places, true, strict=True):
        order = match(place.values, values)
        off = (place.values[order] - values).flatten(1).norm(dim=1) / values.flatten(1).norm(dim=1)
        places.append([place.rectifier, list(values.shape[1:]), float(place.error.max()), float(off.max())])
    return {"cut": places}


def image_figures(found: Recovery, images: Tensor, row: Row) -> dict[str, Any]:
    """What the decoder and the descent made of the features."""
    both = {"decoded": None if found.start is None else found.start.images, "images": found.images}
    made = {name: tensor for name, tensor in both.items() if tensor is not None}
    line: dict[str, Any] = {}
    if not made:
        return line
    gallery = Gallery(_gallery(images, row.size), make_embedding("pixels"))
    for name, tensor in made.items():
        pixels = row.normalisation.invert(tensor).clamp(0, 1)
        pixels = pixels[match(pixels, images)].to(images)
        line[name] = psnr(pixels, images).tolist()
        line[f"{name}_identified"] = sum(gallery.identify(pixels))
    return line


def _gallery(images: Tensor, size: int) -> Tensor:
    return torch.cat([images, _others(size, GALLERY - len(images))])


@cache
def _others(size: int, count: int) -> Tensor:
    """Pictures that are not the client's."""
    folders = (write_unseen_photos(PHOTOS / f"set-{number}", number, 16) for number in _OTHERS)
    others = [load_images(str(folder), 16, size)[0] for folder in folders]
    crops = photo_crops(list(public_photos().values()), (size, size), count - sum(map(len, others)), seed=1)
    return torch.cat([*others, crops])


def show(lines: Sequence[dict[str, Any]]) -> None:
    """One line for each set."""
    head = "network | px | B | set | nearest exact features | error, stated and true | constant, dB | decoded"
    print(f"| {head} | identified | images | identified | s |")
    print("|---" * 12 + "|")
    for line in lines:
        places = line.get("cut", [])
        where = "; ".join(f"{name} ({' x '.join(map(str, shape))})" for name, shape, _, _ in places) or "none"
        error = "–" if not places else f"{max(one[2] for one in places):.0e}, {max(one[3] for one in places):.0e}"
        cells = [line["network"], line["size"], line["batch"], line["set"], where, error, _decibels(line["constant"])]
        for name in ("decoded", "images"):
            seen = line.get(f"{name}_identified")
            cells += [_decibels(line.get(name)), "–" if seen is None else f"{seen} of {line['batch']}"]
        print("| " + " | ".join(map(str, [*cells, f"{line['seconds']:.0f}"])) + " |")


def _decibels(values: Sequence[float] | None) -> str:
    return "–" if values is None else " ".join(f"{value:.1f}" for value in values)


def main() -> None:
    """Run the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[row.name for row in ROWS], choices=[row.name for row in ROWS])
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="number of the first set")
    parser.add_argument("--operations", type=float, default=1e13)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = json.loads(options.out.read_text()) if options.out.exists() else []
    for row in ROWS:
        for number in range(options.first, options.first + options.sets) if row.name in options.rows else ():
            line = run_row(row, number, options.operations)
            lines = [one for one in lines if (one["row"], one["set"]) != (row.name, number)] + [line]
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(lines, indent=1) + "\n")
            show([line])
            print(line["message"], flush=True)


if __name__ == "__main__":
    main()

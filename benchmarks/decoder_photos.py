"""Which public photos the decoder is fitted on, and what that does to the start and to the images.

    python -m benchmarks.decoder_photos --rows cifar-random-4 --sets 1

`usual` are the four of scikit-image that a run fits on; `in their stead` the ones that it fits on where those four are
the client's own; `folder` two photos of scikit-learn, given as `peeling.photos=FOLDER`. The private photos are those of
`unseen_photos`, and `own` the default ones of a simulated client: with these the usual four would be a decoder that
knows the answer, so that only the others are shown.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gradinversion.audit import constant_images, psnr
from gradinversion.audit.decoder_photos import without_private
from gradinversion.capture import PrivateBatch, capture_gradient, load_images
from gradinversion.peeling import PeelingConfig
from gradinversion.peeling.cut.photos import SHIPPED
from gradinversion.peeling.recovery import recover_images
from PIL import Image

from .photos import named_photos
from .residual import ROWS, match
from .residual_case import PHOTOS, Case, Row, case_of

RESULTS = Path(__file__).parent / "results" / "decoder_photos.json"


def sources() -> dict[str, PeelingConfig]:
    """Settings by the name of the photos that they fit on."""
    folder = PHOTOS.parent / "decoder-photos"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = named_photos()
    for name in ("china", "flower"):
        Image.fromarray(pictures[name]).save(folder / f"{name}.png")
    return {
        "usual": PeelingConfig(),
        "in their stead": PeelingConfig(photos_without=SHIPPED[:4]),
        "folder": PeelingConfig(photos=str(folder)),
    }


def own_case(row: Row) -> tuple[Case, PeelingConfig]:
    """The default photos of a simulated client, and the settings that a run of it has."""
    case = case_of(row, 0)
    images, names = load_images("photos", row.batch, row.size)
    images = (images * 255).round() / 255
    update = capture_gradient(case.model, images, case.labels, normalisation=row.normalisation)
    config = without_private(PeelingConfig(), PrivateBatch(images, case.labels, names), "photos")
    return replace(case, update=update, images=images), config


def run(row: Row, number: str, name: str, case: Case, config: PeelingConfig) -> dict[str, Any]:
    """One batch with one decoder."""
    began = time.process_time()
    found = recover_images(case.update, case.model, config)
    line: dict[str, Any] = {"row": row.name, "set": number, "photos": name, "seconds": time.process_time() - began}
    line["constant"] = psnr(constant_images(case.images), case.images).tolist()
    line["fitted"] = list(found.record.photos.names) if found.record and found.record.photos else []
    for key, made in (("start", None if found.start is None else found.start.images), ("images", found.images)):
        if made is not None:
            pixels = row.normalisation.invert(made).clamp(0, 1)
            line[key] = psnr(pixels[match(pixels, case.images)].to(case.images), case.images).tolist()
    return line


def main() -> None:
    """Run the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=["cifar-random-4"], choices=[row.name for row in ROWS])
    parser.add_argument("--sets", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for row in [row for row in ROWS if row.name in options.rows]:
        cases = {str(number): case_of(row, number) for number in range(options.sets)}
        for number, case in cases.items():
            for name, config in sources().items():
                lines.append(run(row, number, name, case, config))
                print(json.dumps(lines[-1]), flush=True)
        case, config = own_case(row)
        lines.append(run(row, "own", "in their stead", case, config))
        print(json.dumps(lines[-1]), flush=True)
    options.out.write_text(json.dumps(lines, indent=1) + "\n")
    show(lines)


def show(lines: list[dict[str, Any]]) -> None:
    """One line for each."""
    print("| row | set | fitted on | constant, dB | start | images | s |\n|---|---|---|---|---|---|---|")
    for line in lines:
        figures = [" ".join(f"{one:.1f}" for one in line.get(key, [])) for key in ("constant", "start", "images")]
        print(f"| {line['row']} | {line['set']} | {line['photos']} | {' | '.join(figures)} | {line['seconds']:.0f} |")


if __name__ == "__main__":
    main()

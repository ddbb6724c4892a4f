"""The picture at the head of the README: original / reconstruction / with a defence, made by the program.

    python -m benchmarks.picture               # writes docs/picture.png and prints both PSNR

A ResNet-18 with the stem for 32 px, random weights, four photos that nothing was tuned on and that the start of the
descent was not fitted on.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch
from gradinversion.agents import AgentsConfig
from gradinversion.audit import evaluate
from gradinversion.audit.pictures import GridRow, draw_grid
from gradinversion.capture import ClientConfig, simulate_client
from gradinversion.cluster import reconstruct
from gradinversion.coordinator import AttackConfig
from PIL import Image

from .unseen_photos import write_unseen_photos

UNSEEN = Path(__file__).resolve().parents[1] / "build" / "unseen"
_MODEL = "gradinversion.benchmarks.networks:cifar_resnet18"
_SET, _COUNT, _SIZE = 4, 4, 32


def _at_size(photos: Path, folder: Path) -> Path:
    """The photos as 8-bit files at the network's size: what is recovered bit for bit is such a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(photos.glob("*.png"))[:_COUNT]:
        Image.open(file).convert("RGB").resize((_SIZE, _SIZE), Image.Resampling.LANCZOS).save(folder / file.name)
    return folder


def main() -> None:
    """Run the attack on the plain update and on the defended one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--strength", type=float, default=1.0, help="noise as a multiple of the update's 95th percentile"
    )
    parser.add_argument("--picture", type=Path, default=Path(__file__).parents[1] / "docs" / "picture.png")
    options = parser.parse_args()
    folder = _at_size(write_unseen_photos(UNSEEN / f"set-{_SET}", _SET, _COUNT), UNSEEN / f"set-{_SET}-{_SIZE}px")
    plain = ClientConfig(model=_MODEL, images=str(folder), batch_size=_COUNT, image_size=_SIZE)
    # Where the gradient determines the images nothing is left to the agents; where noise hides them, one seed shows
    # what a descent makes of it.
    attack = AttackConfig(agents=AgentsConfig(count=1, iterations=200))
    clients = {
        "reconstruction": plain,
        f"with noise ({options.strength:g})": dataclasses.replace(
            plain, defence="noise", defence_strength=options.strength
        ),
    }
    rows: list[GridRow] = []
    for title, client in clients.items():
        update, model, private = simulate_client(client, 0)
        report = evaluate(result := reconstruct(update, model, attack), private)
        order = torch.tensor([image.position for image in report.images])
        if not rows:
            names = tuple(image.name for image in report.images)
            rows.append(GridRow("original", private.images, names))
        captions = tuple(f"{image.psnr:.1f} dB" for image in report.images)
        exact = f", {report.bit_exact} of {len(report.images)} bit for bit"
        rows.append(GridRow(title, result.images[order], captions))
        print(f"{title}: {report.psnr_mean:.1f} dB, constant image {report.constant_image_psnr:.1f} dB{exact}")
    with tempfile.NamedTemporaryFile(dir=options.picture.parent, delete=False) as file:
        file.write(draw_grid(rows))
    Path(file.name).replace(options.picture)


if __name__ == "__main__":
    main()

"""The picture at the head of the README, made by the program: what its own command writes as ``reconstruction.png``.

    python -m benchmarks.picture               # writes docs/picture.png and prints the PSNR

A ResNet-18 with the stem for 32 px, random weights, and four photos that nothing was tuned on and that the start of the
descent was not fitted on.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .unseen_photos import write_unseen_photos

ROOT = Path(__file__).resolve().parents[1]
_SET, _COUNT = 0, 4


def main() -> None:
    """Run the command and keep its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "picture.png")
    options = parser.parse_args()
    photos = write_unseen_photos(ROOT / "build" / "unseen" / f"picture-{_SET}", _SET, _COUNT)
    with tempfile.TemporaryDirectory() as out:
        settings = [
            "client.model=gradinversion.benchmarks.networks:cifar_resnet18",
            f"client.batch_size={_COUNT}",
            f"client.images={photos}",
            "agents.count=2",
            "agents.iterations=200",
            "audit.pool=photos",
            f"out={out}/run",
        ]
        subprocess.run([sys.executable, str(ROOT / "run.py"), *settings], check=True)
        shutil.copy(Path(out) / "run" / "reconstruction.png", options.picture)


if __name__ == "__main__":
    main()

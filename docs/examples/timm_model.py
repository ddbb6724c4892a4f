"""Capture a gradient of a timm model whose weights come from a checkpoint as training scripts write them.

    pip install 'gradinversion[timm]'
    python docs/examples/timm_model.py gradient.safetensors

Then attack it: `python run.py update=gradient.safetensors client.model=timm:resnet10t
client.weights=gradient-checkpoint.pt out=audit`.
"""

import sys
from pathlib import Path

import torch
from gradinversion.capture import CapturedUpdate, capture_gradient, load_model


def main(path: Path) -> None:
    # What a training script leaves behind: the state dict of a wrapped model, beside other things.
    trained = load_model("timm:resnet10t", classes=10, image_size=64, seed=7)
    checkpoint = path.with_name(f"{path.stem}-checkpoint.pt")
    state = {f"module.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, checkpoint)

    model = load_model("timm:resnet10t", classes=10, image_size=64, weights=str(checkpoint))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    update = capture_gradient(model, images, torch.tensor([0, 1]), model_id="timm:resnet10t")
    update.save(path)

    update = CapturedUpdate.load(path)
    update.require_match(model)
    print(f"Captured update: {path}")
    print(f"{update.kind} of {update.model_id}, {update.image_count} images of {update.image_shape}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "gradient.safetensors"))

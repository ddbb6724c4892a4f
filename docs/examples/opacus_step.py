"""Record the update of one DP-SGD step that Opacus makes, and read it again.

    pip install 'gradinversion[opacus]'
    python docs/examples/opacus_step.py private.safetensors

Then attack it: `PYTHONPATH=docs/examples python run.py update=private.safetensors client.model=opacus_step:private_net
client.weights=private-server.safetensors out=audit`.
"""

import sys
import warnings
from pathlib import Path

import safetensors.torch
import torch
from gradinversion.capture import IMAGENET, CapturedUpdate, defence_words, load_model
from gradinversion.capture.adapters.opacus import record_private_steps
from gradinversion.capture.told_config import ToldConfig
from opacus import PrivacyEngine
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

# Opacus says that its random numbers are not cryptographic, and torch that the images need no gradient.
warnings.filterwarnings("ignore", category=UserWarning)


NAME = "opacus_step:private_net"


def private_net(num_classes: int = 10) -> nn.Module:
    """A small network without batch norm, which Opacus refuses because it mixes the images of a batch."""
    layers: list[nn.Module] = []
    for channels, stride in ((3, 2), (32, 2), (32, 1)):
        layers += [nn.Conv2d(channels, 32, 5, stride, 2), nn.GroupNorm(8, 32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 8 * 8, num_classes))


def main(path: Path) -> None:
    torch.manual_seed(0)
    plain = private_net().train()
    data = TensorDataset(torch.rand(32, 3, 32, 32), torch.arange(32) % 10)
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=plain,
        optimizer=torch.optim.SGD(plain.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=8),
        noise_multiplier=1.1,
        max_grad_norm=1.0,
    )
    # Whatever Opacus cannot know of the client; a fact that nobody tells is assumed.
    stated = ToldConfig(loss="cross_entropy", loss_scale="1", label_smoothing="0").facts()
    with record_private_steps(
        model,
        optimizer,
        engine,
        image_shape=(3, 32, 32),
        normalisation=IMAGENET,
        loader=loader,
        stated=stated,
        model_id=NAME,
    ) as steps:
        for images, labels in loader:
            optimizer.zero_grad()
            cross_entropy(model(IMAGENET.apply(images)), labels).backward()
            optimizer.step()
    weights = path.with_name(f"{path.stem}-server.safetensors")
    steps.update.save(path)
    safetensors.torch.save_file(steps.servers[-1], weights)

    update = CapturedUpdate.load(path)
    update.require_match(load_model(NAME, weights=str(weights)))
    print(f"Captured update: {path}")
    print(f"{update.image_count} images, {defence_words(update.defences)}, {update.facts.privacy}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "private.safetensors"))

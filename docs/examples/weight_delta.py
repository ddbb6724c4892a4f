"""Record what a client of federated averaging sends after local training in plain PyTorch, and read it again.

    python docs/examples/weight_delta.py delta.safetensors

Then attack it: `python run.py update=delta.safetensors client.model=convnet client.weights=delta-server.safetensors
out=audit`.
"""

import sys
from pathlib import Path

import safetensors.torch
import torch
from gradinversion.capture import IMAGENET, CapturedUpdate, LocalTraining, load_model
from gradinversion.capture.adapters import capture_state_dicts
from gradinversion.capture.told_config import ToldConfig
from torch.nn.functional import cross_entropy

# What two states do not show; a fact that nobody tells is assumed.
STATED = ToldConfig(
    dropout="false",
    loss="cross_entropy",
    reduction="mean",
    loss_scale="1",
    label_smoothing="0",
    penalty="none",
    defences="none",
    sampling="fixed",
    clients="1",
)


def main(path: Path) -> None:
    model = load_model("convnet")
    before = {name: value.clone() for name, value in model.state_dict().items()}

    # The client: three passes over its four images, all in one batch, batch norm in evaluation mode.
    images, labels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model(IMAGENET.apply(images)), labels).backward()
        optimizer.step()

    # The server: it holds both states (files serve as well) and knows how the client trained.
    update = capture_state_dicts(
        model,
        before,
        model.state_dict(),
        image_count=4,
        image_shape=(3, 32, 32),
        local=LocalTraining(learning_rate=0.01, epochs=3, momentum=0.9),
        normalisation=IMAGENET,
        stated=STATED.facts(),
        model_id="convnet",
    )
    weights = path.with_name(f"{path.stem}-server.safetensors")
    update.save(path)
    safetensors.torch.save_file(before, weights)

    update = CapturedUpdate.load(path)
    update.require_match(load_model("convnet", weights=str(weights)))
    print(f"Captured update: {path}")
    print(f"{update.kind}, {update.image_count} images, {update.local}, batch norm {update.batch_norm}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "delta.safetensors"))

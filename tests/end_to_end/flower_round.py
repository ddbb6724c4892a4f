"""Record what one client sends in a real Flower simulation of three clients, and read it again.

In one process tree and without the network, unlike ``docs/examples/flower_app``, which ``flwr run`` starts.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
# Ray would join a cluster that RAY_ADDRESS names; the simulation is to start one of its own.
os.environ["RAY_ADDRESS"] = "local"

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from gradinversion.capture import IMAGENET, CapturedUpdate, load_model
from gradinversion.capture.adapters.flower import FlowerRecorder
from gradinversion.capture.told_config import ToldConfig
from torch.nn.functional import cross_entropy

client_app, server_app = ClientApp(), ServerApp()
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "captured")
# In an app that `flwr run` starts this is `context.run_config`, from `[tool.flwr.app.config]` in its pyproject.toml.
RUN_CONFIG = {"num-server-rounds": 2, "local-epochs": 2, "batch-size": 4, "learning-rate": 0.01}
# What no setting says of the clients below; a fact that nobody tells is assumed, and `problems` says so.
STATED = ToldConfig(
    momentum="0",
    weight_decay="0",
    shuffled="false",
    dropout="false",
    loss="cross_entropy",
    reduction="mean",
    loss_scale="1",
    label_smoothing="0",
    penalty="none",
    defences="none",
    sampling="fixed",
)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Two passes over the client's own eight images, in batches of four."""
    # Flower runs its clients in processes of their own, with threads of their own.
    torch.set_num_threads(1)
    partition = int(context.node_config["partition-id"])
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(partition))
    labels = torch.arange(8)
    model = load_model("convnet")
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    rate = message.content.config_records["config"]["lr"]
    assert isinstance(rate, float)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(int(RUN_CONFIG["local-epochs"])):
        for part in torch.arange(8).split(int(RUN_CONFIG["batch-size"])):
            optimizer.zero_grad()
            cross_entropy(model(IMAGENET.apply(images[part])), labels[part]).backward()
            optimizer.step()
    numbers = MetricRecord({"num-examples": 8, "partition-id": partition})
    reply = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": numbers})
    return Message(content=reply, reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Federated averaging as ever; the recorder is the one line more."""
    model = load_model("convnet")
    recorder = FlowerRecorder(
        model,
        folder,
        image_shape=(3, 32, 32),
        client={"partition-id": 1},
        rounds={2},
        run_config=RUN_CONFIG | dict(context.run_config),
        normalisation=IMAGENET,
        stated=STATED.facts(),
        model_id="convnet",
    )
    strategy = recorder.wrap(FedAvg(fraction_evaluate=0.0, min_available_nodes=3))
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=int(RUN_CONFIG["num-server-rounds"]),
        train_config=ConfigRecord({"lr": RUN_CONFIG["learning-rate"]}),
    )
    for problem in recorder.problems:
        print(f"Problem: {problem}")
    for path in recorder.files:
        update = CapturedUpdate.load(path)
        update.require_match(load_model("convnet", weights=str(folder / "round-0002-server.safetensors")))
        print(f"Captured update: {path}")
        print(f"{update.kind}, {update.image_count} images, {update.local}, batch norm {update.batch_norm}")


if __name__ == "__main__":
    run_simulation(
        server_app,
        client_app,
        num_supernodes=3,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 1, "object_store_memory": 2**27, "log_to_driver": False},
        },
    )

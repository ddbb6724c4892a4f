"""Federated averaging as ever; the recorder is the one line more."""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from gradinversion.capture.adapters.flower import FlowerRecorder
from gradinversion.capture.told_config import ToldConfig

from .task import DEVIATION, MEAN, build

# What no setting says of the clients; a fact that nobody tells is assumed, and `problems` says so.
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
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """The rounds of the training."""
    model = build()
    recorder = FlowerRecorder(
        model,
        str(context.run_config["captured"]),
        image_shape=(3, 32, 32),
        client={"partition-id": 1},
        rounds={2},
        run_config=context.run_config,
        normalisation=(MEAN, DEVIATION),
        stated=STATED.facts(),
        model_id="convnet",
    )
    strategy = recorder.wrap(FedAvg(fraction_evaluate=0.0, min_available_nodes=2))
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
        train_config=ConfigRecord({"lr": float(context.run_config["learning-rate"])}),
    )
    for problem in recorder.problems:
        print(f"Problem: {problem}", flush=True)
    for path in recorder.files:
        print(f"Captured update: {path}", flush=True)

"""Facts x writers: every writer's record is true fact by fact; `test_facts_readers.py` holds the readers against it."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from gradinversion.capture import (
    IMAGENET,
    BatchNormMode,
    CapturedUpdate,
    ClientConfig,
    Defence,
    LocalFacts,
    LocalTraining,
    Normalisation,
    Penalty,
    Provenance,
    Reduction,
    Sampling,
    capture_gradient,
    capture_weight_delta,
    simulate_client,
    told,
    train_locally,
)
from gradinversion.capture.adapters import capture_state_dicts
from gradinversion.capture.adapters.rounds import Order, Reply, RoundRecorder, Weights
from gradinversion.capture.stated import state_facts
from gradinversion.capture.told_config import ToldConfig, apply_told
from gradinversion.settings.run import load_config
from gradinversion.sweep.grid import make_grid
from torch import Tensor, nn

# Opacus says that its random numbers are not cryptographic, and torch that the images need no gradient.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Secure RNG turned off:UserWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
]

TOLD, READ, ASSUMED = Provenance.TOLD, Provenance.READ, Provenance.ASSUMED
HALF = Normalisation((0.5,) * 3, (0.25,) * 3)
GRADIENT = (
    *("image_count", "normalisation", "batch_norm", "loss", "reduction", "loss_scale", "label_smoothing"),
    *("penalty", "dropout", "defences", "sampling", "clients"),
)
LOCAL = ("learning_rate", "epochs", "batch_size", "momentum", "weight_decay", "shuffled")
USUAL: dict[str, Any] = {
    "image_count": 4,
    "normalisation": IMAGENET,
    "batch_norm": BatchNormMode.EVAL,
    "loss": "cross_entropy",
    "reduction": Reduction.MEAN,
    "loss_scale": 1.0,
    "label_smoothing": 0.0,
    "penalty": Penalty(),
    "dropout": False,
    "defences": (),
    "sampling": Sampling(),
    "clients": 1,
    "learning_rate": None,
    "epochs": 1,
    "batch_size": None,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "shuffled": False,
}


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6)).eval()


def images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


LABELS = torch.arange(4)
TRAINING = LocalTraining(0.1, epochs=2, batch_size=2, momentum=0.9, weight_decay=0.01)


@dataclass(frozen=True)
class Row:
    """One writer: what it makes, and what its record is to say of the client; a fact in neither list is told."""

    make: Callable[[Path], CapturedUpdate]
    values: dict[str, Any]
    """Those that are not the usual."""
    read: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    local: bool = False


UNTOLD = ("loss", "reduction", "loss_scale", "label_smoothing", "penalty", "dropout", "defences", "sampling", "clients")
OF_TRAINING = {"learning_rate": 0.1, "epochs": 2, "batch_size": 2, "momentum": 0.9, "weight_decay": 0.01}


def simulated(**settings: Any) -> Callable[[Path], CapturedUpdate]:
    return lambda folder: simulate_client(ClientConfig(image_size=16, **settings), 0)[0]


def after_training(batch_norm: str = "train_shared") -> dict[str, Tensor]:
    """What a client in training mode sends after its local steps: the whole state dict."""
    model = network().train()
    update = train_locally(network(), images(), LABELS, local=TRAINING, normalisation=HALF, batch_norm=batch_norm)
    state = model.state_dict() | {name: p.detach() + update.gradients[name] for name, p in model.named_parameters()}
    return state | (update.buffers or {})


def weight_delta(folder: Path) -> CapturedUpdate:
    return capture_weight_delta(
        network(), after_training(), image_count=4, image_shape=(3, 8, 8), local=LocalFacts(epochs=told(2))
    )


def state_dicts(folder: Path) -> CapturedUpdate:
    return capture_state_dicts(
        network(),
        network().state_dict(),
        after_training(),
        image_count=4,
        image_shape=(3, 8, 8),
        local=LocalFacts(learning_rate=told(0.1), batch_size=told(2)),
        normalisation=HALF,
        stated={"loss": told("cross_entropy"), "momentum": told(0.9)},
    )


def npy(value: Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, value.numpy(), allow_pickle=False)
    return file.getvalue()


def packed(state: dict[str, Tensor]) -> Weights:
    return Weights(tuple(npy(value) for value in state.values()), tuple(state))


RUN_CONFIG = {"num-server-rounds": 3, "local-epochs": 5, "batch-size": 2}


def recorded_round(folder: Path) -> CapturedUpdate:
    recorder = RoundRecorder(network(), folder, image_shape=(3, 8, 8), run_config=RUN_CONFIG, normalisation=HALF)
    recorder.record(
        1,
        [Order("7", packed(network().state_dict()), {"lr": 0.1, "local-epochs": 2})],
        [Reply("7", packed(after_training()), {"num-examples": 4, "momentum": 0.9, "train-loss": 2.3})],
    )
    return CapturedUpdate.load(recorder.files[0])


def flower_fit(folder: Path) -> CapturedUpdate:
    if importlib.util.find_spec("flwr") is None:
        pytest.skip("flwr is not installed: pip install 'gradinversion[flower]'")
    from gradinversion.capture.adapters.flower import FlowerRecorder

    def parameters(state: dict[str, Tensor]) -> Any:
        return SimpleNamespace(tensors=[npy(value) for value in state.values()], tensor_type="numpy.ndarray")

    proxy = SimpleNamespace(cid="a")

    class Strategy:
        def configure_fit(self, number: int, given: Any, manager: Any) -> Any:
            return [(proxy, SimpleNamespace(parameters=given, config={"lr": 0.1}))]

        def aggregate_fit(self, number: int, results: Any, failures: Any) -> Any:
            return None, {}

    recorder = FlowerRecorder(network(), folder, image_shape=(3, 8, 8))
    strategy = recorder.wrap(Strategy())
    strategy.configure_fit(1, parameters(network().state_dict()), None)
    reply = SimpleNamespace(parameters=parameters(after_training()), metrics={"local_epochs": 2}, num_examples=4)
    strategy.aggregate_fit(1, [(proxy, reply)], [])
    return CapturedUpdate.load(recorder.files[0])


def opacus(folder: Path) -> CapturedUpdate:
    engines = pytest.importorskip("opacus", reason="opacus is not installed: pip install 'gradinversion[opacus]'")
    from gradinversion.capture.adapters.opacus import record_private_steps
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 6)).train()
    model, optimizer, loader = engines.PrivacyEngine(accountant="rdp").make_private(
        module=plain,
        optimizer=torch.optim.SGD(plain.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(images().repeat(2, 1, 1, 1), LABELS.repeat(2)), batch_size=2),
        noise_multiplier=0.5,
        max_grad_norm=0.3,
    )
    with record_private_steps(model, optimizer, image_shape=(3, 8, 8), normalisation=HALF, loader=loader) as steps:
        optimizer.zero_grad()
        F.cross_entropy(model(HALF.apply(images())), LABELS).backward()
        optimizer.step()
    return steps.update


def cell_of_a_sweep(folder: Path) -> CapturedUpdate:
    words = ["client.image_size=16", "sweep.defences=prune:0.9", "sweep.batch_sizes=2", "sweep.bn=train_private"]
    (cell,) = make_grid(load_config([*words, f"out={folder}"])).cells
    assert cell.config is not None
    return simulate_client(cell.config.client, cell.config.seed)[0]


def old_file(folder: Path) -> CapturedUpdate:
    """Version 1 knew values alone."""
    update = train_locally(network(), images(), LABELS, local=TRAINING, normalisation=HALF)
    update.save(folder / "u.safetensors")
    old = {
        "version": 1,
        "image_shape": [3, 8, 8],
        "model_id": "m",
        "weight_hash": update.weight_hash,
        "kind": "weight_delta",
        "buffers": False,
        "image_count": 4,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "batch_norm": "eval",
        "loss": "cross_entropy",
        "defence": "none",
        "local": OF_TRAINING | {"shuffled": False},
    }
    tensors = safetensors.torch.load_file(folder / "u.safetensors")
    safetensors.torch.save_file(tensors, folder / "old.safetensors", metadata={"gradinversion": json.dumps(old)})
    return CapturedUpdate.load(folder / "old.safetensors")


def told_by_the_user(folder: Path) -> CapturedUpdate:
    return apply_told(weight_delta(folder), ToldConfig(normalisation="0.5/0.25", batch_size="2", momentum="0.9"))


WRITERS: dict[str, Row] = {
    "simulated client": Row(simulated(), {}),
    "simulated client, local steps": Row(
        simulated(
            local_epochs=2,
            local_batch_size=2,
            learning_rate=0.1,
            momentum=0.9,
            weight_decay=0.01,
            shuffled=True,
            bn="train_shared",
        ),
        OF_TRAINING | {"shuffled": True, "batch_norm": BatchNormMode.TRAIN_SHARED},
        local=True,
    ),
    "simulated client, rate kept": Row(
        simulated(local_epochs=1, learning_rate_known=False), {}, assumed=("learning_rate",), local=True
    ),
    "simulated client, two defences": Row(
        simulated(defence="clip:0.5+noise:0.1"), {"defences": (Defence("clip", 0.5), Defence("noise", 0.1))}
    ),
    "simulated client, DP-SGD": Row(
        simulated(defence="dp_sgd:1.1", defence_clip=0.7), {"defences": (Defence("dp_sgd", 1.1, (0.7,)),)}
    ),
    "simulated clients, summed": Row(simulated(clients=2, batch_size=2), {"clients": 2}),
    "cell of a sweep": Row(
        cell_of_a_sweep,
        {"image_count": 2, "batch_norm": BatchNormMode.TRAIN_PRIVATE, "defences": (Defence("prune", 0.9),)},
    ),
    "capture_gradient": Row(
        lambda folder: capture_gradient(network(), images(), LABELS, normalisation=HALF, batch_norm="train_shared"),
        {"normalisation": HALF, "batch_norm": BatchNormMode.TRAIN_SHARED},
    ),
    "train_locally": Row(
        lambda folder: train_locally(network(), images(), LABELS, local=TRAINING, normalisation=HALF),
        OF_TRAINING | {"normalisation": HALF},
        local=True,
    ),
    # Statistics that moved say how batch norm ran, whatever nobody said, and their counters how large a step was.
    "capture_weight_delta": Row(
        weight_delta,
        {"epochs": 2, "batch_norm": BatchNormMode.TRAIN_SHARED, "batch_size": 2},
        read=("batch_norm",),
        assumed=("normalisation", *UNTOLD, *(name for name in LOCAL if name != "epochs")),
        local=True,
    ),
    # Four steps of two batches are two epochs.
    "capture_state_dicts": Row(
        state_dicts,
        {"normalisation": HALF, "batch_norm": BatchNormMode.TRAIN_SHARED, "learning_rate": 0.1, "momentum": 0.9}
        | {"epochs": 2, "batch_size": 2},
        read=("batch_norm", "epochs"),
        assumed=(*(name for name in UNTOLD if name != "loss"), "weight_decay", "shuffled"),
        local=True,
    ),
    "RoundRecorder": Row(
        recorded_round,
        OF_TRAINING | {"weight_decay": 0.0, "normalisation": HALF, "batch_norm": BatchNormMode.TRAIN_SHARED},
        read=("batch_norm", "clients"),
        assumed=(*(name for name in UNTOLD if name != "clients"), "weight_decay", "shuffled"),
        local=True,
    ),
    # Two epochs of four steps: two batches of four images, of two or three each.
    "Flower, fit": Row(
        flower_fit,
        {"batch_norm": BatchNormMode.TRAIN_SHARED, "learning_rate": 0.1, "epochs": 2, "batch_size": 2},
        read=("batch_norm", "clients"),
        assumed=(
            *("normalisation", *(name for name in UNTOLD if name != "clients")),
            *("batch_size", "momentum", "weight_decay", "shuffled"),
        ),
        local=True,
    ),
    "Opacus": Row(
        opacus,
        {"normalisation": HALF, "defences": (Defence("dp_sgd", 0.5, (0.3,)),), "sampling": Sampling(True, 2.0)},
        read=("batch_norm", "dropout", "sampling"),
        assumed=("loss", "loss_scale", "label_smoothing"),
    ),
    "a file of version 1": Row(
        old_file, OF_TRAINING | {"normalisation": HALF}, assumed=(*GRADIENT, *LOCAL), local=True
    ),
    "told.*": Row(
        told_by_the_user,
        {"normalisation": HALF, "epochs": 2, "batch_size": 2, "momentum": 0.9}
        | {"batch_norm": BatchNormMode.TRAIN_SHARED},
        read=("batch_norm",),
        assumed=(*UNTOLD, "learning_rate", "weight_decay", "shuffled"),
        local=True,
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_says_of_each_fact_what_is_true_and_how_it_knows(writer: str, tmp_path: Path) -> None:
    row = WRITERS[writer]
    update = row.make(tmp_path)
    names = (*GRADIENT, *LOCAL) if row.local else GRADIENT
    found = {name: (fact.value, fact.provenance) for name, fact in update.facts.items()}
    provenance = dict.fromkeys(row.read, READ) | dict.fromkeys(row.assumed, ASSUMED)
    assert found == {name: ((USUAL | row.values)[name], provenance.get(name, TOLD)) for name in names}
    # What was read or told says where it comes from.
    assert all(fact.source for _, fact in update.facts.items() if not fact.assumed)


@pytest.mark.parametrize("writer", WRITERS)
def test_what_any_writer_made_is_the_same_after_its_file_and_for_every_reader(writer: str, tmp_path: Path) -> None:
    update = WRITERS[writer].make(tmp_path)
    update.save(tmp_path / "update.safetensors")
    again = CapturedUpdate.load(tmp_path / "update.safetensors")
    assert again.facts == update.facts
    for one in state_facts(again.facts, {name for name, _ in again.facts.items()}, {}):
        fact = dict(update.facts.items())[one.name]
        assert (one.provenance, one.source) == (fact.provenance, fact.source)
        assert one.doubtful is fact.assumed

"""Files of every kind that the tool reads, changed at random: what a stranger, or a bad disk, could make of them."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from gradinversion.agents import AgentsConfig, Outcome
from gradinversion.capture import CapturedUpdate, ClientConfig, load_images, load_model, simulate_client
from gradinversion.capture.weights import read_weights
from gradinversion.coordinator import AttackConfig, Coordinator, Storage, form_consensus, read_result
from gradinversion.coordinator.checkpoints import CheckpointStore
from gradinversion.coordinator.events import EventKind
from gradinversion.coordinator.progress import Progress
from gradinversion.coordinator.result_file import write_result
from gradinversion.coordinator.serial_group import SerialGroup
from gradinversion.exporting import export
from gradinversion.exporting.run_files import read_run
from gradinversion.registration import RegistrationConfig
from gradinversion.settings.folder import read_settings
from gradinversion.settings.run import config_yaml, load_config
from gradinversion.storage.tensor_file import CheckpointError, write_state, write_tensors
from gradinversion.sweep.accuracy import Accuracy, load_accuracy, save_accuracy
from gradinversion.sweep.budget import Plan
from gradinversion.sweep.planning import PlanStore
from gradinversion.sweep.results import CellResult, Risk, State, Worst, load_result, save_result
from PIL import Image

from .mutations import Mutate, change_bytes, change_json, change_json_or_bytes, change_safetensors, change_torch_file


class Door:
    """Where files of one kind come in.

    Args:
        folder: Of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.originals: list[tuple[Path, Mutate]] = []
        self.prepare()
        self._contents = {path: path.read_bytes() for path, _ in self.originals}

    def prepare(self) -> None:
        """Write the originals."""
        raise NotImplementedError

    def read(self, path: Path) -> None:
        """Have the tool read what this file belongs to."""
        raise NotImplementedError

    def mutate(self, chance: random.Random) -> tuple[Path, int]:
        """Change one of the originals; the file, and its bytes."""
        path, change = chance.choice(self.originals)
        content = change(chance, self._contents[path])
        path.write_bytes(content)
        return path, len(content)

    def restore(self, path: Path) -> None:
        """Undo it."""
        path.write_bytes(self._contents[path])


class Updates(Door):
    """Captured updates."""

    def prepare(self) -> None:
        """See `Door`."""
        for index, words in enumerate(
            ({}, {"bn": "train_shared"}, {"local_epochs": 2, "defence": "noise", "defence_strength": 0.1})
        ):
            path = self.folder / f"{index}.safetensors"
            simulate_client(ClientConfig(**words), 0)[0].save(path)  # type: ignore[arg-type]
            self.originals.append((path, change_safetensors))

    def read(self, path: Path) -> None:
        """See `Door`."""
        CapturedUpdate.load(path)


class Weights(Door):
    """Weight files of each container."""

    def prepare(self) -> None:
        """See `Door`."""
        state = load_model("convnet").state_dict()
        small = {name: tensor[..., :2].contiguous() for name, tensor in state.items() if tensor.ndim}
        torch.save({"state_dict": small, "epoch": 3}, self.folder / "a.pt")
        torch.save(small, self.folder / "b.pth", _use_new_zipfile_serialization=False)
        write_tensors(Storage(self.folder), "c.safetensors", small)
        for name, change in (
            ("a.pt", change_torch_file),
            ("b.pth", change_bytes),
            ("c.safetensors", change_safetensors),
        ):
            self.originals.append((self.folder / name, change))

    def read(self, path: Path) -> None:
        """See `Door`."""
        read_weights(path)


class Manifests(Door):
    """Manifests of checkpoints, and whose they are."""

    def prepare(self) -> None:
        """See `Door`."""
        storage, progress = Storage(self.folder), _progress()
        store = CheckpointStore(storage, {"seed": 1, "learning_rate": 0.1})
        store.claim()
        folder = "checkpoints/round-000004"
        files = {seed: f"{folder}/seed-{seed}.w.safetensors" for seed in (0, 1)}
        states = {seed: write_state(storage, file, {"x": torch.ones(2)}, 5) for seed, file in files.items()}
        store.commit(4, states, progress.facts(), progress.tensors())
        self.originals = [
            (self.folder / folder / "manifest.json", change_json_or_bytes),
            (self.folder / "checkpoints" / "owner.json", change_json_or_bytes),
        ]

    def read(self, path: Path) -> None:
        """See `Door`."""
        store = CheckpointStore(Storage(self.folder), {"seed": 1, "learning_rate": 0.1})
        checkpoint, _ = store.latest()
        if checkpoint is None:
            raise CheckpointError("passed over")
        Progress().restore(checkpoint.round, checkpoint.progress, checkpoint.tensors)
        store.claim()


def _progress() -> Progress:
    progress = Progress(history=[{"round": 4, "seed": 0, "total": 0.5}], deaths={0: 1}, seconds=3.5)
    images, labels = torch.rand(2, 3, 3, 16, 16), torch.arange(3)
    progress.agree(*form_consensus(images, [0, 1], labels, 4, RegistrationConfig()), 20)
    progress.events.note(EventKind.AGENT_LOST, "The process of {seed} was lost.", seeds=(1,), round=3)
    return progress


class Results(Door):
    """The result of a run: facts and tensors."""

    def prepare(self) -> None:
        """See `Door`."""
        update, model, _ = simulate_client(ClientConfig(batch_size=2, image_size=8), 0)
        config = AttackConfig(agents=AgentsConfig(count=2, iterations=4))
        found = Coordinator(update, model, config, SerialGroup(config)).run()
        assert found.outcome is Outcome.FINISHED
        write_result(Storage(self.folder), found)
        self.originals = [
            (self.folder / "checkpoints" / "result.json", change_json_or_bytes),
            (self.folder / "checkpoints" / "result.json", change_json),
            (self.folder / "checkpoints" / "result.safetensors", change_safetensors),
        ]

    def read(self, path: Path) -> None:
        """See `Door`."""
        read_result(Storage(self.folder))


class Settings(Door):
    """The yaml of a run's settings."""

    def prepare(self) -> None:
        """See `Door`."""
        words = ["update=a.safetensors", "private=mine", "sweep.batch_sizes=1,2,4", "told.momentum=0.9"]
        (self.folder / "config.yaml").write_text(config_yaml(load_config(words)))
        self.originals = [(self.folder / "config.yaml", change_bytes)]

    def read(self, path: Path) -> None:
        """See `Door`."""
        read_settings(Storage(self.folder))


class Images(Door):
    """Image files of each format."""

    def prepare(self) -> None:
        """See `Door`."""
        noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        picture = Image.fromarray(noise)
        for suffix in ("png", "jpg", "bmp", "webp", "tif", "gif", "ppm"):
            path = self.folder / suffix / f"a.{suffix}"
            path.parent.mkdir()
            picture.save(path)
            self.originals.append((path, change_bytes))
        deep = self.folder / "deep" / "a.tif"
        deep.parent.mkdir()
        Image.fromarray(noise[..., 0].astype(np.float32) / 255).save(deep)
        self.originals.append((deep, change_bytes))

    def read(self, path: Path) -> None:
        """See `Door`."""
        load_images(str(path.parent), 1, 16)


class Cells(Door):
    """What an audit keeps of its grid: results of cells, its plan, accuracies."""

    def prepare(self) -> None:
        """See `Door`."""
        storage, self._config = Storage(self.folder), load_config(["sweep.batch_sizes=1,2"])
        worst = Worst("a.png", "data:image/png;base64,AA==", "data:image/png;base64,AA==", 31.5, None, "none", 12.0)
        risks = (Risk("a.png", "leaked", 9.5, 2.0, 0.7), Risk("b.png", "none", -0.5, 1.0, 0.3))
        done = CellResult(State.DONE, "It leaks", 2, 1, psnr=25.0, worst=worst, risks=risks, versions={"torch": "2"})
        save_result(storage, replace(done, problems=("a control failed",)))
        PlanStore(storage, self._config).save(Plan(250, 2, ("a", "b"), {"a": 1.5}, ("fewer steps",)), 3)
        save_accuracy(storage, "noise", {"seed": 1}, Accuracy((0.5, 0.75, 0.5), 300, 8, 40, 10, 0.1, 0.02))
        self.originals = [(path, change_json_or_bytes) for path in sorted(self.folder.rglob("*.json"))]

    def read(self, path: Path) -> None:
        """See `Door`."""
        storage = Storage(self.folder)
        found = (
            load_result(storage),
            PlanStore(storage, self._config).load(),
            load_accuracy(storage, "noise", {"seed": 1}),
        )
        if None in found:
            raise CheckpointError("passed over")


class Numbers(Door):
    """What an export reads: rows of losses, and reports."""

    def prepare(self) -> None:
        """See `Door`."""
        row = {"round": 0, "seed": 1, "incarnation": 0, "step": 20, "gradient": 0.5, "total": None}
        (self.folder / "metrics.jsonl").write_text(
            "".join(json.dumps(row | {"step": step}) + "\n" for step in range(9))
        )
        report = {"psnr_mean": 20.5, "images": [{"name": "a", "psnr": 21.0}], "verdict": {"leak": "leaked"}}
        (self.folder / "report.json").write_text(json.dumps(report))
        grid = {"cells": [{"name": "a", "axes": {"batch": "1"}, **asdict(CellResult(State.DONE, "none"))}]}
        (self.folder / "audit.json").write_text(json.dumps(grid))
        self.originals = [(self.folder / "metrics.jsonl", change_bytes)]
        self.originals += [(self.folder / name, change_json_or_bytes) for name in ("report.json", "audit.json")]

    def read(self, path: Path) -> None:
        """See `Door`."""
        read_run(Storage(self.folder))
        export(Storage(self.folder), ("csv",))


DOORS: dict[str, type[Door]] = {
    "updates": Updates,
    "weights": Weights,
    "manifests": Manifests,
    "results": Results,
    "yaml": Settings,
    "images": Images,
    "cells": Cells,
    "numbers": Numbers,
}

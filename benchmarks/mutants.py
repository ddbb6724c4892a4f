"""Files of every kind that the tool reads, changed at random: what a stranger, or a bad disk, could make of them."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from gradinversion.registration import RegistrationConfig
from gradinversion.settings.folder import read_settings
from gradinversion.settings.run import config_yaml, load_config
from gradinversion.storage.tensor_file import CheckpointError, write_state, write_tensors
from PIL import Image

Mutate = Callable[[random.Random, bytes], bytes]
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -0.0, float("nan"), float("inf")),
    *("", "x", "\x1b[2J\u202e", "../../etc/passwd", "/dev/zero", "a" * 5_000, [], {}, [[]], {"$tensor": "x"}),
    *({"$float": "x"}, {"$tuple": 3}, {"$tuple": [1]}, ["a", 1], {"a": {"a": {}}}),
)
_ODD_BYTES = (b"\0", b"\xff", b"\xff\xff\xff\xff", b"\0\0\0\0\0\0\0\x80", b"[", b"{", b"}", b'"', b"&a ", b"*a", b"!!")


def change_bytes(chance: random.Random, content: bytes) -> bytes:
    """A few places flipped, cut out, repeated, filled with odd values, or the end cut off."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5))):
        place = chance.randrange(len(changed) + 1)
        length = chance.choice((1, 2, 4, 16, 200))
        kind = chance.randrange(6)
        if kind == 0:
            del changed[place : place + length]
        elif kind == 1:
            changed[place:place] = changed[place : place + length]
        elif kind == 2:
            changed[place : place + length] = chance.randbytes(length)
        elif kind == 3:
            odd = chance.choice(_ODD_BYTES)
            changed[place : place + len(odd)] = odd
        elif kind == 4 and chance.random() < 0.3:
            del changed[place:]
        elif place < len(changed):
            changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def change_json(chance: random.Random, content: bytes) -> bytes:
    """A value somewhere in it exchanged for an odd one, an entry taken away, doubled or renamed."""
    tree = json.loads(content)
    for _ in range(chance.choice((1, 1, 2, 4))):
        places = list(_places(tree))
        if not places:
            break
        holder, key = chance.choice(places)
        kind = chance.randrange(4)
        if kind == 0 and isinstance(holder, dict):
            holder[chance.choice(("x", "$x", "", "\x1b"))] = holder.pop(key)
        elif kind == 1:
            del holder[key]
        elif kind == 2:
            other, name = chance.choice(places)
            holder[key] = copy.deepcopy(other[name]) if _holds(other, name) else None
        else:
            holder[key] = copy.deepcopy(chance.choice(_ODD_VALUES))
    return json.dumps(tree).encode()


def _holds(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def _places(tree: Any) -> Any:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield tree, key
        yield from _places(value)


def change_json_or_bytes(chance: random.Random, content: bytes) -> bytes:
    """As either of them."""
    return chance.choice((change_json, change_json, change_bytes))(chance, content)


def change_safetensors(chance: random.Random, content: bytes) -> bytes:
    """The file as it is, or its header as JSON with the right length again."""
    if chance.random() < 0.4:
        return change_bytes(chance, content)
    (length,) = struct.unpack("<Q", content[:8])
    tree = json.loads(content[8 : 8 + length])
    facts = tree.get("__metadata__", {}).get("gradinversion")
    if facts is not None and chance.random() < 0.5:
        tree["__metadata__"]["gradinversion"] = change_json_or_bytes(chance, facts.encode()).decode(errors="replace")
        header = json.dumps(tree).encode()
    else:
        header = change_json_or_bytes(chance, content[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def change_torch_file(chance: random.Random, content: bytes) -> bytes:
    """The file as it is, or one of the entries of its zip, with the right checksum again."""
    if not content.startswith(b"PK") or chance.random() < 0.3:
        return change_bytes(chance, content)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, change_bytes(chance, part) if name.endswith("data.pkl") else part)
    return buffer.getvalue()


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


DOORS: dict[str, type[Door]] = {
    "updates": Updates,
    "weights": Weights,
    "manifests": Manifests,
    "results": Results,
    "yaml": Settings,
    "images": Images,
}

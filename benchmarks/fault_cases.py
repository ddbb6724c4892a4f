"""Commands that must be refused, each with the files that it meets; by the kind of door."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import hostile_files as files

SECRET = "hunter2"
_PARTS = {"lists": b"[],", "objects": b'{"a":0},', "texts": b'"%a",', "numbers": b"1.5,"}

Make = Callable[[Path], object]


def _nothing(_: Path) -> None:
    pass


@dataclass(frozen=True)
class Case:
    """One command."""

    door: str
    what: str
    words: tuple[str, ...]
    """``{}`` in them is the folder of the case."""
    make: Make = _nothing
    """Puts the files into that folder."""
    environment: tuple[tuple[str, str], ...] = ()


def cases(json_bytes: int = 255 * 2**20) -> list[Case]:
    """All of them.

    Args:
        json_bytes: Of each file whose values would take many times that.
    """
    runs = _runs(json_bytes)
    return [*_code(), *_text(), *_folders(), *_clusters(), *_weights(), *runs, *_claims(), *_images()]


def _code() -> list[Case]:
    def folder(verb: str, settings: str) -> Case:
        make = lambda path: files.run_folder(path / "run", settings=settings)  # noqa: E731
        return Case("code", f"{verb} of a folder with {settings}", (verb, "out={}/run"), make)

    preset = lambda path: (path / "p.yaml").write_text("client: {model: 'os:abort'}\n")  # noqa: E731
    return [
        folder("report", "client: {model: 'http.server:test'}"),
        folder("watch", "client: {model: 'os:abort'}"),
        folder("report", "agents: {generator: 'os:abort'}"),
        Case("code", "a preset file that names code", ("preset={}/p.yaml", "out=new"), preset),
    ]


def _text() -> list[Case]:
    odd = partial(_update, weight_hash="\x1b[2J\u202eevil" * 20)
    return [
        Case("text", "a secret in the URL of out", (f"out=ftp://me:{SECRET}@host/x?X-Amz-Signature={SECRET}",)),
        Case("text", "a secret in the URL of an update", (f"update=s3://me:{SECRET}@host/x", "out=new")),
        Case("text", "escape sequences in an update", ("update={}/u.safetensors", "seed=5", "out=new"), odd),
        Case("text", "an update of another model", ("update={}/u.safetensors", "client.model=resnet18"), _update),
    ]


def _update(path: Path, **facts: object) -> None:
    files.update_with(path / "u.safetensors", **facts)


def _folders() -> list[Case]:
    begun = lambda path: files.run_folder(path / "run", b"{}")  # noqa: E731
    return [
        Case("folder", "no such update, and checkpoints in out", ("out={}/run", "update=/does/not/exist"), begun),
        Case("folder", "checkpoints, and neither resume nor restart", ("out={}/run",), begun),
        Case("folder", "other settings with resume=true", ("out={}/run", "resume=true", "seed=7"), begun),
    ]


def _clusters() -> list[Case]:
    def at(address: str) -> Case:
        return Case("cluster", f"RAY_ADDRESS={address}", ("out=new",), environment=(("RAY_ADDRESS", address),))

    return [at("127.0.0.1:1"), at("ray://127.0.0.1:1"), at("nonsense"), at("localhost:99999999")]


def _weights() -> list[Case]:
    def file(what: str, name: str, make: Callable[[Path], object]) -> Case:
        words = ("capture", "out=new", f"client.weights={{}}/{name}")
        return Case("weights", what, words, lambda path: make(path / name))

    return [
        file("a zip of 2 GiB of zeros", "w.pt", files.compressed),
        file("a zip that names a record 20,000 times", "w.pt", files.overlapping),
        file("a header of 67 MB", "w.safetensors", files.long_header),
        file("a pipe that nobody writes to", "w.pt", os.mkfifo),
        file("a device without end", "w.pt", lambda path: path.symlink_to("/dev/zero")),
    ]


def _runs(json_bytes: int) -> list[Case]:
    def settings(what: str, content: str) -> Case:
        make = lambda path: files.run_folder(path / "run", settings=content)  # noqa: E731
        return Case("run", f"config.yaml with {what}", ("report", "out={}/run"), make)

    def large(verb: str, name: str, what: str, part: bytes) -> Case:
        def make(path: Path) -> None:
            files.run_folder(path / "run")
            (path / "run" / name).write_bytes(files.repeated(part, json_bytes))

        return Case("run", f"{name.rpartition('/')[2]} full of {what}", (verb, "out={}/run"), make)

    return [
        settings("laughs", files.laughs()),
        settings("60,000 unknown keys", "".join(f"k{number}: 1\n" for number in range(60_000))),
        settings("a number of 128,000 parts", "seed: 1" + ":1" * 128_000),
        Case("run", "a preset that is a pipe", ("preset={}/p.yaml",), lambda path: os.mkfifo(path / "p.yaml")),
        *(large("report", "checkpoints/result.json", what, part) for what, part in _PARTS.items()),
        *(large("export", "report.json", what, part) for what, part in _PARTS.items()),
        large("export", "metrics.jsonl", "empty lines", b"\n"),
    ]


def _claims() -> list[Case]:
    image_count = {"value": 65_536, "provenance": "told", "source": "x"}
    words = ("update={}/u.safetensors", "out=new")
    return [
        Case("claim", "an update of 8,192 px", words, partial(_update, image_shape=[3, 8192, 8192])),
        Case(
            "claim",
            "an update of 65,536 images of 8,192 px",
            words,
            partial(_update, image_shape=[3, 8192, 8192], facts__image_count=image_count),
        ),
        Case("claim", "an update that is a pipe", words, lambda path: os.mkfifo(path / "u.safetensors")),
        Case("claim", "client.image_size=1000000", ("out=new", "client.image_size=1000000")),
        Case("claim", "client.classes=1000000000", ("out=new", "client.classes=1000000000")),
    ]


def _images() -> list[Case]:
    words = ("capture", "out=new", "client.batch_size=1", "client.images={}")

    def many(path: Path) -> None:
        for number in range(20):
            files.png(path / f"{number}.png", 9_400)

    return [
        Case("images", "PostScript called a.png", words, lambda path: files.postscript(path / "a.png")),
        Case("images", "88 megapixels in 11 KB", words, lambda path: files.png(path / "a.png", 9_400)),
        Case("images", "twenty of them", words, many),
    ]

"""Files made by hand to make whoever reads them run code, hang, or take memory without end."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from pathlib import Path

import torch
from gradinversion.capture import ClientConfig, simulate_client


def png(path: Path, side: int) -> None:
    """A whole PNG of one colour: 88 megapixels in a few kilobytes, all of them there."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">2I5B", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compressobj(9)
    body = b"".join(rows.compress(bytes(1 + -(-side // 8))) for _ in range(side)) + rows.flush()
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def postscript(path: Path) -> None:
    """A program under an image's name."""
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) (w) file closefile\nshowpage\n")


def safetensors(path: Path, header: bytes, body: bytes = b"") -> None:
    """A file with this header."""
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)


def long_header(path: Path) -> None:
    """67 MB of header, whole."""
    entry = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    safetensors(path, b"{" + b",".join(entry % number for number in range(1_100_000)) + b"}")


def compressed(path: Path) -> None:
    """A zip of a few megabytes whose one record is 2 GiB of zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("a/data.pkl", b"\x80\x02}.")
        with file.open("a/data/0", "w", force_zip64=True) as record:
            for _ in range(128):
                record.write(bytes(2**24))


def overlapping(path: Path) -> None:
    """A zip whose directory names one record many times."""
    torch.save({"w": torch.zeros(2**16)}, path)
    with zipfile.ZipFile(path, "a") as file:
        (record,) = (entry for entry in file.infolist() if entry.filename.endswith("data/0"))
        for number in range(20_000):
            twin = zipfile.ZipInfo(record.filename.removesuffix("0") + str(number + 1))
            twin.header_offset, twin.CRC = record.header_offset, record.CRC
            twin.file_size = twin.compress_size = record.file_size
            file.filelist.append(twin)
        file._didModify = True  # type: ignore[attr-defined]


def update_with(path: Path, **facts: object) -> None:
    """An update some of whose facts are others; of a simulated client."""
    simulate_client(ClientConfig(), 0)[0].save(path)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    told = json.loads(header["__metadata__"]["gradinversion"])
    for name, value in facts.items():
        holder = told
        *folders, last = name.split("__")
        for folder in folders:
            holder = holder[folder]
        holder[last] = value
    header["__metadata__"]["gradinversion"] = json.dumps(told)
    safetensors(path, json.dumps(header).encode(), content[8 + length :])


def run_folder(path: Path, manifest: bytes | None = None, settings: str = "seed: 0\n") -> None:
    """A folder that holds a run with one round, whose manifest is this one; without it the round is unfinished."""
    place = path / "checkpoints" / "round-000000"
    place.mkdir(parents=True)
    (path / "config.yaml").write_text(settings)
    if manifest is not None:
        (place / "manifest.json").write_bytes(manifest)


def repeated(part: bytes, size: int) -> bytes:
    """JSON of so many bytes whose values take many times that."""
    return b'{"progress":[' + part * (size // len(part)) + b"0]}" if part.strip() else part * size


def laughs() -> str:
    """A yaml of nine references to nine references, and so on."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{{', '.join(f'k{k}: *a{n - 1}' for k in range(9))}}}" for n in range(1, 10)]
    return "\n".join(lines)

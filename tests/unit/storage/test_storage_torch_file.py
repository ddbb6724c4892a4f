"""Files of torch.save from anyone: read as they were written, or refused before anything is allocated."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.capture.weights import ModelError, read_weights
from torch import Tensor, nn

# Opcodes of pickle.
GLOBAL, REDUCE, MARK, TUPLE, STOP, PROTO = b"c", b"R", b"(", b"t", b".", b"\x80\x02"


def states() -> dict[str, dict[str, Any]]:
    base = torch.arange(24.0).reshape(4, 6)
    shared = torch.rand(3)
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
    return {
        "types": {str(kind): torch.arange(-3, 4).to(kind) for kind in kinds},
        "bytes and truth": {"u": torch.tensor([0, 255], dtype=torch.uint8), "b": torch.tensor([True, False])},
        "views": {"t": base.T, "s": base[1:3, ::2], "row": base[2], "all": base},
        "shared": {"a": shared, "b": shared, "c": shared[1:]},
        "empty": {"none": torch.zeros(0, 3), "scalar": torch.tensor(2.5)},
        "parameters": dict(nn.Linear(3, 2).named_parameters()),
        "ordered": OrderedDict(nn.BatchNorm2d(3).state_dict()),
        "channels last": {"w": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)},
        "complex": {"z": torch.complex(torch.rand(2), torch.rand(2))},
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", list(states()))
def test_what_was_saved_is_read_with_every_bit(tmp_path: Path, name: str, zipped: bool) -> None:
    state = states()[name]
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    found = read_weights(tmp_path / "w.pt")
    assert list(found) == list(state)
    for key, tensor in state.items():
        assert found[key].dtype is tensor.dtype
        assert found[key].stride() == tensor.stride()
        assert torch.equal(found[key], tensor)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    state = {"w": torch.arange(3.0), "long name" * 50: torch.ones(2)}
    torch.save({"state_dict": state, "epoch": 2**70, "seen": {1, 2}}, tmp_path / "w.pt", pickle_protocol=protocol)
    assert torch.equal(read_weights(tmp_path / "w.pt")["w"], state["w"])


ODD: dict[str, Callable[[], Tensor]] = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.rand(4), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.rand(2), torch.rand(3)]),
    "meta": lambda: torch.zeros(3, device="meta"),
    "float8": lambda: torch.rand(4).to(torch.float8_e4m3fn),
    "uint16": lambda: torch.arange(4).to(torch.uint16),
    "expanded": lambda: torch.rand(1).expand(10_000),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(ODD))
def test_tensors_that_are_not_plain_are_a_sentence(tmp_path: Path, name: str) -> None:
    torch.save({"w": ODD[name]()}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"not a plain tensor|does not fit its storage|objects other than tensors"):
        read_weights(tmp_path / "w.pt")


def test_a_float8_in_safetensors_is_a_sentence(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"ab")
    with pytest.raises(ModelError, match="type 'F8_E4M3'; allowed are F64"):
        read_weights(tmp_path / "w.safetensors")


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def tuple_of(*parts: bytes) -> bytes:
    return MARK + b"".join(parts) + TUPLE


def made(module: str, name: str, *arguments: bytes) -> bytes:
    return GLOBAL + f"{module}\n{name}\n".encode() + tuple_of(*arguments) + REDUCE


def stored(count: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    return tuple_of(text("storage"), GLOBAL + f"torch\n{kind}\n".encode(), text(key), text("cpu"), number(count)) + b"Q"


def tensor(count: int, size: int, stride: int = 1, offset: int = 0, key: str = "0") -> bytes:
    shape = (tuple_of(number(size)), tuple_of(number(stride)))
    return made("torch._utils", "_rebuild_tensor_v2", stored(count, key), number(offset), *shape, b"\x89", b"}")


def program(value: bytes) -> bytes:
    """A pickle of {"w": value}."""
    return PROTO + b"}" + text("w") + value + b"s" + STOP


def archive(path: Path, content: bytes, numbers: bytes = bytes(8), compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", content)
        file.writestr("a/data/0", numbers)
    return path


def test_a_file_made_by_hand_is_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "w.pt", program(tensor(2, 2)), struct.pack("<2f", 1, 2))
    assert torch.equal(read_weights(path)["w"], torch.tensor([1.0, 2.0]))


HOSTILE: dict[str, bytes] = {
    "numbers that are not there": program(tensor(2**40, 2**40)),
    "more numbers than its record": program(tensor(1000, 2)),
    "fewer numbers than its record": program(tensor(1, 1)),
    "a view beyond its storage": program(tensor(2, 3)),
    "an offset beyond its storage": program(tensor(2, 1, offset=2)),
    "a stride beyond its storage": program(tensor(2, 2, stride=2**40)),
    "a negative size": program(tensor(2, -1)),
    "a negative stride": program(tensor(2, 2, stride=-1)),
    "a negative offset": program(tensor(2, 1, offset=-1)),
    "a negative count": program(tensor(-1, 1)),
    "another storage": program(tensor(2, 2, key="1")),
    "a storage outside": program(tensor(2, 2, key="../../etc/passwd")),
    "an array of bytes": program(made("builtins", "bytearray", number(2**40))),
    "a tensor without numbers": program(made("torch", "FloatTensor", number(2**40))),
    "a call of the system": program(made("os", "system", text("touch ran"))),
    "a call of what is no function": program(b"N" + tuple_of() + REDUCE),
    "an empty stack": PROTO + REDUCE + STOP,
    "nothing": b"",
    "no end": PROTO + b"}",
    "a memo that is not there": PROTO + b"h\x07" + STOP,
    "a mark alone": PROTO + MARK + STOP,
    "items of a number": PROTO + number(3) + text("a") + text("b") + b"s" + STOP,
    "items of a list": PROTO + b"]" + text("a") + text("b") + b"s" + STOP,
    "a text of four gigabytes": PROTO + b"X\xff\xff\xff\xff" + STOP,
    "a number of two gigabytes": PROTO + b"\x8b\xff\xff\xff\x7f" + STOP,
    "an instruction of an old protocol": b"I7\n.",
    "an extension": PROTO + b"\x82\x01" + STOP,
    "a list as a key": PROTO + b"}" + b"]" + text("b") + b"s" + STOP,
    "nested tuples as a key": PROTO + b"}" + b")" + b"\x85" * 300_000 + text("b") + b"s" + STOP,
    "deep nesting": program(b"]" * 200_000 + b"a" * 199_999),
    "a parameter of a parameter": program(
        (GLOBAL + b"torch._utils\n_rebuild_parameter\n") * 50 + b"N" + (b"\x85" + REDUCE) * 50
    ),
    "too many instructions": PROTO + b"N0" * 600_000 + b"N" + STOP,
    "a dimension too many": program(
        made(
            "torch._utils", "_rebuild_tensor_v2", stored(2), number(0), *2 * [tuple_of(*9 * [number(1)])], b"\x89", b"}"
        )
    ),
    "a persistent text": PROTO + text("0") + b"Q" + STOP,
    "a storage of nothing": PROTO + tuple_of(text("storage"), b"N", text("0"), text("cpu"), number(2)) + b"Q" + STOP,
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_pickles_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"the weights file '.*w\.pt' ") as refused:
        read_weights(archive(tmp_path / "w.pt", HOSTILE[name]))
    assert len(str(refused.value)) < 1_000
    assert not (tmp_path / "ran").exists()


def compressed(path: Path) -> None:
    archive(path, program(tensor(2**24, 2**24)), bytes(2**26), zipfile.ZIP_DEFLATED)


def cut_off(path: Path) -> None:
    content = archive(path, program(tensor(2, 2))).read_bytes()
    path.write_bytes(content[:-40])


def flipped(path: Path) -> None:
    content = archive(path, program(tensor(2, 2)), b"12345678").read_bytes()
    path.write_bytes(content.replace(b"12345678", b"12345679"))


def claiming(path: Path) -> None:
    """The directory says that an entry is a terabyte."""
    content = bytearray(archive(path, program(tensor(2, 2))).read_bytes())
    place = content.rfind(b"PK\1\2")
    content[place + 20 : place + 28] = struct.pack("<2L", 0xFFFFFF00, 0xFFFFFF00)
    path.write_bytes(content)


def vast_directory(path: Path) -> None:
    content = bytearray(archive(path, program(tensor(2, 2))).read_bytes())
    place = content.rfind(b"PK\5\6")
    content[place + 12 : place + 16] = struct.pack("<L", 0xF0000000)
    path.write_bytes(content)


def big_endian(path: Path) -> None:
    archive(path, program(tensor(2, 2)))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("a/byteorder", "big")


def two_pickles(path: Path) -> None:
    archive(path, program(tensor(2, 2)))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("b/data.pkl", program(tensor(2, 2)))


def script(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)


def row(path: Path, change: Callable[[bytes], bytes]) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(4.0)}, buffer, _use_new_zipfile_serialization=False)
    path.write_bytes(change(buffer.getvalue()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make",
    [
        compressed,
        cut_off,
        flipped,
        claiming,
        vast_directory,
        big_endian,
        two_pickles,
        script,
        lambda path: row(path, lambda content: content[:-1]),
        lambda path: row(path, lambda content: content[:40]),
        lambda path: row(path, lambda content: content[:-24] + struct.pack("<q", 2**60) + content[-16:]),
        lambda path: path.write_bytes(pickle.dumps({"w": 1})),
        lambda path: path.write_bytes(b"PK\3\4"),
        lambda path: path.write_bytes(b"PK\5\6" * 100),
    ],
)
def test_hostile_containers_are_a_sentence(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"the weights file '.*w\.pt' "):
        read_weights(tmp_path / "w.pt")


LIMITED = """
import resource, sys
import torch
from gradinversion.capture.weights import ModelError, read_weights
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)
for path in sys.argv[1:]:
    try:
        read_weights(path)
        print("read", path)
    except ModelError as error:
        assert "not enough memory" not in str(error), error
"""


def test_bombs_are_refused_within_two_hundred_megabytes(tmp_path: Path) -> None:
    paths = []
    for index, name in enumerate(("numbers that are not there", "an array of bytes", "a text of four gigabytes")):
        paths.append(archive(tmp_path / f"{index}.pt", HOSTILE[name]))
    compressed(tmp_path / "compressed.pt")
    vast_directory(tmp_path / "directory.pt")
    header = b"[" * 8_000_000
    (tmp_path / "header.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    small = b'{"w":{"dtype":"F32","shape":[1073741824],"data_offsets":[0,4294967296]}}'
    (tmp_path / "claims.safetensors").write_bytes(struct.pack("<Q", len(small)) + small + bytes(8))
    paths += [path for path in tmp_path.iterdir() if path not in paths]
    words = [sys.executable, "-c", LIMITED, *map(str, paths)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_named_pipe_is_not_opened(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "w.pt")
    with pytest.raises(ModelError, match="does not exist"):
        read_weights(tmp_path / "w.pt")


def test_tensors_that_shared_memory_share_it_again(tmp_path: Path) -> None:
    shared: Tensor = torch.rand(5)
    torch.save({"a": shared, "b": shared[2:]}, tmp_path / "w.pt")
    found = read_weights(tmp_path / "w.pt")
    found["a"][3] = 9
    assert found["b"][1] == 9

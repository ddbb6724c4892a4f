"""A file of ``torch.save``, as a stranger's: its pickle is read and not run, and each tensor's sizes are held against
the bytes that are there before any of them is read.

Two containers: a zip of one pickle and one record per storage, and before PyTorch 1.6 pickles and storages in a row.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .pickle_reader import LARGEST_PICKLE_BYTES, Asked, BoundedFile, Named, read_pickle
from .safetensors_reader import LARGEST_RANK, short, tensor_of, wrong

_LARGEST_DIRECTORY_BYTES = 16 * 2**20
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_END_OF_ZIP = struct.Struct("<4s4H2LH")
_END_OF_ZIP64 = struct.Struct("<4sQ2H2L4Q")
_LONGEST_END = 65_535 + _END_OF_ZIP.size

_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.storage.UntypedStorage": torch.uint8,
}
_DICTIONARIES = re.compile(r"collections\.(OrderedDict|Counter)|.*\.AttributeDict")
_PLAIN_TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_OF_A_TYPE = "torch._tensor._rebuild_from_type_v2"
_ODD_TENSORS = re.compile(r"torch\._utils\._rebuild_\w+|torch\.(\w+\.)*(\w*Tensor|Parameter)|torch\.nested\.\S*")
_DEEPEST_TENSOR = 4


@dataclass(frozen=True)
class _Numbers:
    """One storage: its bytes lie in the file."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class TensorPlan:
    """A tensor that can be read: its numbers, and which of them it shows."""

    numbers: _Numbers
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class OddTensor:
    """A tensor that is not read: sparse, quantised, nested, without numbers, or of a type such as float8."""

    kind: str


@dataclass(frozen=True)
class _Container:
    """Where the bytes of storages lie."""

    size: Callable[[_Numbers], int]
    read: Callable[[_Numbers], bytearray]


Choose = Callable[[Any, frozenset[str]], Mapping[str, TensorPlan]]


def read_torch_file(path: str | os.PathLike[str], choose: Choose) -> dict[str, Tensor]:
    """The tensors that ``choose`` takes out of a file.

    Args:
        path: Of a regular file.
        choose: Is given what the file holds (see `as_mapping` and `as_tensor`) and the names of all classes and
            functions in it; it may raise.

    Raises:
        FormatError: The file is damaged, or claims more numbers than it has bytes for.
        OSError: It cannot be read.
    """
    if not Path(path).is_file():
        wrong("it is no regular file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        zipped = file.read(4) == b"PK\3\4"
        file.seek(0)
        references = _References()
        read = _read_zip if zipped else _read_row
        content, container = read(file, size, references)
        return _build(choose(content, frozenset(references.names)), container)


def as_mapping(value: Any) -> Mapping[Any, Any] | None:
    """A dictionary of whatever kind, or None."""
    if isinstance(value, Asked):
        return value.items if _DICTIONARIES.fullmatch(value.name) else None
    return value if isinstance(value, dict) else None


def as_tensor(value: Any) -> TensorPlan | OddTensor | None:
    """What is known of a tensor, or None for anything else.

    Raises:
        FormatError: It shows numbers that its storage does not have.
    """
    for _ in range(_DEEPEST_TENSOR):
        if not isinstance(value, Asked):
            return None
        name, given = value.name, value.arguments
        if name in _PARAMETERS and given:
            value = given[0]
        elif name == _OF_A_TYPE and len(given) > 2 and isinstance(given[0], Named) and isinstance(given[2], tuple):
            value = Asked(given[0].name, given[2])
        elif name in _PLAIN_TENSORS and len(given) > 3 and isinstance(given[0], _Numbers):
            return _plan(given[0], *given[1:4])
        else:
            types = [one.name for one in given if isinstance(one, Named)]
            return OddTensor((*types, name)[0]) if _ODD_TENSORS.fullmatch(name) else None
    return None


def _plan(numbers: _Numbers, offset: Any, size: Any, stride: Any) -> TensorPlan:
    size, stride = _whole_numbers(size), _whole_numbers(stride)
    if type(offset) is not int or offset < 0 or len(size) != len(stride) or len(size) > LARGEST_RANK:
        wrong(f"a tensor of storage {short(numbers.key)} has a malformed shape")
    shown = math.prod(size)
    last = offset + sum((many - 1) * step for many, step in zip(size, stride, strict=True))
    if shown and (shown > numbers.count or last >= numbers.count):
        wrong(
            f"a tensor of shape {short(size)} does not fit its storage {short(numbers.key)} of {numbers.count:,} "
            "numbers; save it with .contiguous()"
        )
    return TensorPlan(numbers, offset, size, stride)


def _whole_numbers(value: Any) -> tuple[int, ...]:
    if isinstance(value, Asked) and value.name == "torch.Size" and len(value.arguments) == 1:
        value = value.arguments[0]
    if not isinstance(value, tuple | list) or not all(type(one) is int and 0 <= one < 2**48 for one in value):
        wrong("a tensor has a malformed shape")
    return tuple(value)


class _References:
    """What the pickle names and refers to."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.numbers: dict[str, _Numbers] = {}

    def __call__(self, what: Any) -> Any:
        """The numbers that ``torch.save`` refers to, or for those of a type that is not read, a record of it."""
        if not isinstance(what, tuple) or len(what) < 5 or what[0] != "storage" or any(what[5:]):
            wrong("its pickle refers to something else than the numbers of a tensor")
        _, kind, key, _, count = what[:5]
        named, counted = isinstance(kind, Named) and isinstance(key, str), type(count) is int and 0 <= count < 2**48
        if not named or not counted:
            wrong("its pickle refers to numbers in a malformed way")
        if kind.name not in _STORAGES:
            return Asked(kind.name, ())
        numbers = _Numbers(key, _STORAGES[kind.name], count)
        if self.numbers.setdefault(key, numbers) != numbers:
            wrong(f"its storage {short(key)} is said to be of two kinds")
        return numbers


def _build(plans: Mapping[str, TensorPlan], container: _Container) -> dict[str, Tensor]:
    """Sizes of all storages first; then each is read once, and tensors that shared memory share it again."""
    needed = {plan.numbers.key: plan.numbers for plan in plans.values()}
    for numbers in needed.values():
        size, wanted = container.size(numbers), numbers.count * numbers.dtype.itemsize
        if size != wanted:
            wrong(f"its storage {short(numbers.key)} has {size:,} bytes, and its tensors say {wanted:,}")
    read = {key: tensor_of(container.read(numbers), numbers.dtype) for key, numbers in needed.items()}
    return {
        name: read[plan.numbers.key].as_strided(plan.size, plan.stride, plan.offset)
        if math.prod(plan.size)
        else torch.empty(plan.size, dtype=plan.numbers.dtype)
        for name, plan in plans.items()
    }


# A zip.


def _read_zip(file: BinaryIO, size: int, references: _References) -> tuple[Any, _Container]:
    archive = _open_zip(file, size)
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        wrong("its zip holds no file of torch.save")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries:
        wrong("it holds a compiled program (TorchScript); save model.state_dict() instead")

    def read(name: str, largest: int | None = None) -> bytes:
        if name not in entries:
            wrong(f"its entry {short(name)} is missing")
        if largest is not None and entries[name].file_size > largest:
            wrong(f"its entry {short(name)} has {entries[name].file_size:,} bytes; at most {largest:,} are read")
        try:
            return archive.read(name)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error) as error:
            wrong(f"its entry {short(name)} is damaged ({short(str(error))})")

    def length(numbers: _Numbers) -> int:
        entry = entries.get(f"{folder}data/{numbers.key}")
        return -1 if entry is None else entry.file_size

    if f"{folder}byteorder" in entries and read(f"{folder}byteorder", 16) != b"little":
        wrong("it was written on a big-endian machine, whose files are not read")
    content = io.BytesIO(read(pickles[0], LARGEST_PICKLE_BYTES))
    found = read_pickle(BoundedFile(content), references.names, references)
    return found, _Container(length, lambda numbers: bytearray(read(f"{folder}data/{numbers.key}")))


def _open_zip(file: BinaryIO, size: int) -> zipfile.ZipFile:
    directory = _directory_bytes(file, size)
    if directory > _LARGEST_DIRECTORY_BYTES:
        wrong(f"the directory of its zip has {directory:,} bytes; at most {_LARGEST_DIRECTORY_BYTES:,} are read")
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        wrong(f"its zip is damaged ({short(str(error))})")
    total = 0
    for entry in archive.infolist():
        total += entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            wrong(f"its entry {short(entry.filename)} is compressed or encrypted, which torch.save never does")
    if total > size:
        wrong(f"the entries of its zip claim {total:,} bytes, and it has {size:,}")
    return archive


def _directory_bytes(file: BinaryIO, size: int) -> int:
    """Of the zip's directory, by the record at the file's end: `zipfile` reads all of it at once."""
    file.seek(max(0, size - _LONGEST_END))
    end = file.read(_LONGEST_END)
    place = end.rfind(b"PK\5\6")
    if place < 0 or len(end) - place < _END_OF_ZIP.size:
        wrong("its zip has no end; it is cut off")
    found = int(_END_OF_ZIP.unpack_from(end, place)[5])
    wide = end.rfind(b"PK\6\6", 0, place)
    if found == 0xFFFFFFFF and wide >= 0 and len(end) - wide >= _END_OF_ZIP64.size:
        found = int(_END_OF_ZIP64.unpack_from(end, wide)[8])
    return found


# Pickles and storages in a row.


def _read_row(file: BinaryIO, size: int, references: _References) -> tuple[Any, _Container]:
    bounded = BoundedFile(file)
    if read_pickle(bounded) != _MAGIC:
        wrong("it is no file of torch.save")
    if read_pickle(bounded) != _PROTOCOL:
        wrong(f"it is of another protocol of torch.save than {_PROTOCOL}")
    system = read_pickle(bounded)
    if isinstance(system, dict) and system.get("little_endian") is False:
        wrong("it was written on a big-endian machine, whose files are not read")
    content = read_pickle(bounded, references.names, references)
    keys = read_pickle(bounded)
    if not isinstance(keys, list) or set(map(str, keys)) != references.numbers.keys():
        wrong("the list of its storages is not that of its tensors")
    places, position = {}, file.tell()
    # Each storage is its count of numbers in eight bytes, and the numbers.
    for numbers in (references.numbers[str(key)] for key in keys):
        file.seek(position)
        if file.read(8) != struct.pack("<q", numbers.count):
            wrong(f"its storage {short(numbers.key)} does not have the numbers that its tensors say")
        places[numbers.key] = position + 8
        position += 8 + numbers.count * numbers.dtype.itemsize
        if position > size:
            wrong(f"its storages claim more than its {size:,} bytes")

    def read(numbers: _Numbers) -> bytearray:
        file.seek(places[numbers.key])
        content = bytearray(file.read(numbers.count * numbers.dtype.itemsize))
        if len(content) != numbers.count * numbers.dtype.itemsize:
            wrong("it became shorter while it was read")
        return content

    return content, _Container(lambda numbers: numbers.count * numbers.dtype.itemsize, read)

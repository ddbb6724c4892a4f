"""What a pickle says, as plain values: its instructions are read, and nothing that it names is looked up or called.

A pickle is a program for a small machine with a stack. Here the machine builds tuples, lists and dictionaries as usual;
where the program asks for an object of a class, or for the result of a function, it gets a record of what was asked.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from .safetensors_reader import FormatError, short, wrong

LARGEST_PICKLE_BYTES = 32 * 2**20
MOST_INSTRUCTIONS = 1_000_000
_PLAIN = (str, bytes, int, float, bool, type(None))
_MARK = object()


@dataclass(frozen=True)
class Named:
    """A class, function or type by its dotted name."""

    name: str


@dataclass(eq=False)
class Asked:
    """What a function or class was asked for; ``items`` are what was then put into it by key."""

    name: str
    arguments: tuple[Any, ...]
    items: dict[Any, Any] = field(default_factory=dict)


class BoundedFile:
    """The part of a file that a pickle may be in: what asks for more is refused before it is read."""

    def __init__(self, file: BinaryIO, largest: int = LARGEST_PICKLE_BYTES) -> None:
        self._file, self._left = file, largest

    def read(self, count: int) -> bytes:
        """As of a file."""
        self._take(count)
        return self._file.read(count)

    def readline(self) -> bytes:
        """As of a file."""
        line = self._file.readline(self._left + 1)
        self._take(len(line))
        return line

    def tell(self) -> int:
        """As of a file."""
        return self._file.tell()

    def _take(self, count: int) -> None:
        if not 0 <= count <= self._left:
            wrong(f"its pickle asks for more than {LARGEST_PICKLE_BYTES:,} bytes")
        self._left -= count


def _refuse_reference(_: Any) -> Any:
    wrong("its pickle refers to what is beside it")


def read_pickle(
    file: BoundedFile, names: set[str] | None = None, refer: Callable[[Any], Any] = _refuse_reference
) -> Any:
    """The value of the pickle at this place of a file, which is left behind it.

    Args:
        file: Read from where it is.
        names: Is given the dotted names of all classes and functions that the pickle names.
        refer: Makes the value of a reference to something beside the pickle, such as the numbers of a tensor.

    Raises:
        FormatError: It is damaged, too long, or uses what no file of tensors needs.
    """
    machine = _Machine(set() if names is None else names, refer)
    count = 0
    try:
        for instruction, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]
            count += 1
            if count > MOST_INSTRUCTIONS:
                wrong(f"its pickle has more than {MOST_INSTRUCTIONS:,} instructions")
            machine.step(instruction.name, argument)
        return machine.pop()
    except FormatError:
        raise
    # Of the parser, and of a program that takes from an empty stack, or what is not there.
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise FormatError(f"its pickle is damaged ({short(str(error))})") from None


class _Machine:
    def __init__(self, names: set[str], refer: Callable[[Any], Any]) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._names, self._refer = names, refer

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in _WITHOUT_EFFECT:
            wrong(f"its pickle has the instruction {name}, which no file of tensors needs")

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            wrong("its pickle is damaged (a mark in the wrong place)")
        return value

    def _top(self) -> Any:
        value = self._stack[-1]
        if value is _MARK:
            wrong("its pickle is damaged (a mark in the wrong place)")
        return value

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        items.reverse()
        return items

    def put(self, argument: Any) -> None:
        self._memo[int(argument)] = self._top()

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._top()

    def get(self, argument: Any) -> None:
        self._stack.append(self._memo[int(argument)])

    def mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def drop(self, _: Any) -> None:
        self._stack.pop()

    def drop_to_mark(self, _: Any) -> None:
        self._pop_to_mark()

    def again(self, _: Any) -> None:
        self._stack.append(self._top())

    def tuple(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._stack.append((*items,))

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self._stack.append((*reversed(items),))

    def append(self, _: Any) -> None:
        item = self.pop()
        self._extend([item])

    def appends(self, _: Any) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Asked):
            wrong("its pickle is damaged (it appends to what is no list)")

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._update([key, value])

    def set_items(self, _: Any) -> None:
        self._update(self._pop_to_mark())

    def _update(self, pairs: list[Any]) -> None:
        target = self._top()
        items = target.items if isinstance(target, Asked) else target
        if not isinstance(items, dict) or len(pairs) % 2:
            wrong("its pickle is damaged (it sets items of what is no dictionary)")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # The hash of nested tuples is taken by recursion, without end.
            items[key if isinstance(key, _PLAIN) else Asked("key", (key,))] = value

    def named(self, argument: Any) -> None:
        self._name(".".join(str(argument).split(" ", 1)))

    def named_by_stack(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self._name(f"{module}.{name}" if isinstance(name, str) and isinstance(module, str) else "?")

    def _name(self, name: str) -> None:
        self._names.add(name)
        self._stack.append(Named(name))

    def ask(self, _: Any) -> None:
        arguments, asked = self.pop(), self.pop()
        if not isinstance(asked, Named) or not isinstance(arguments, tuple):
            wrong("its pickle is damaged (it calls what is no function)")
        self._stack.append(Asked(asked.name, arguments))

    def ask_by_name(self, _: Any) -> None:
        self.pop()  # arguments by keyword
        self.ask(_)

    def build(self, _: Any) -> None:
        self.pop()  # attributes: of what is only a record, nobody needs them

    def refer(self, _: Any) -> None:
        self._stack.append(self._refer(self.pop()))


_LITERALS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"SHORT_BINSTRING", "BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
_WITHOUT_EFFECT = frozenset({"PROTO", "FRAME", "STOP"})
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Asked("builtins.set", ()),
}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_to_mark,
    "DUP": _Machine.again,
    "TUPLE": _Machine.tuple,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.named_by_stack,
    "REDUCE": _Machine.ask,
    "NEWOBJ": _Machine.ask,
    "NEWOBJ_EX": _Machine.ask_by_name,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.refer,
}

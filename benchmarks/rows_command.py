"""The command of a benchmark whose table has a line for each row and set of photos: what others measured is kept."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch


class Named(Protocol):
    """A row, told by its name on the command line."""

    @property
    def name(self) -> str:
        """Of the row."""


Kind = TypeVar("Kind", bound=Named)
_PRINTED = ("row", "set", "psnr", "start_psnr", "seconds", "message")


def rows_command(
    about: str | None,
    rows: Sequence[Kind],
    run: Callable[[Kind, int], dict[str, Any]],
    show: Callable[[Sequence[dict[str, Any]]], None],
    results: Path,
) -> None:
    """Run the rows that are asked for, write each line as it comes, and print the table of all.

    Args:
        about: What ``--help`` begins with.
        rows: All that there are.
        run: Measures one on the set of photos of this number; its ``row`` and ``set`` name both.
        show: Prints lines as a table.
        results: Where they are written, unless told otherwise.
    """
    names = [row.name for row in rows]
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=names, choices=names)
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="number of the first set")
    parser.add_argument("--out", type=Path, default=results)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines: list[dict[str, Any]] = json.loads(options.out.read_text()) if options.out.exists() else []
    for row in rows:
        for number in range(options.first, options.first + options.sets if row.name in options.rows else 0):
            line = run(row, number)
            lines = [one for one in lines if (one["row"], one["set"]) != (row.name, number)] + [line]
            print(json.dumps({key: line[key] for key in _PRINTED if key in line}), flush=True)
            options.out.write_text(json.dumps(lines, indent=1) + "\n")
    show(lines)

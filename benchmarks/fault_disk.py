"""A disk that is full at some moment of a write, at many moments: nothing is lost, and no error but a sentence.

    unshare -m python -m benchmarks.fault_disk --levels 40      # as root, on Linux: each level is a disk in memory

At each level a disk has so much room when the next checkpoint is saved, or when a newer result replaces one; rows in
``benchmarks/results/fault_disk.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from gradinversion.agents import AgentsConfig
from gradinversion.capture import ClientConfig, simulate_client
from gradinversion.coordinator import (
    AttackConfig,
    Coordinator,
    Reconstruction,
    Storage,
    read_result,
    state_name,
    write_state,
)
from gradinversion.coordinator.checkpoints import CheckpointStore
from gradinversion.coordinator.result_file import write_result
from gradinversion.coordinator.serial_group import SerialGroup
from gradinversion.peeling import PeelingConfig
from gradinversion.refusal import Refusal

RESULTS = Path(__file__).parent / "results" / "fault_disk.json"
_ROOM = "64m"


@dataclass
class Found:
    """What became of one kind of write at all levels."""

    write: str
    levels: int = 0
    full: int = 0
    """Levels at which something could not be written."""
    lost: int = 0
    """Where neither the old nor the new is whole afterwards."""
    undocumented: list[str] = field(default_factory=list)


@contextlib.contextmanager
def disk(kilobytes: int) -> Iterator[Path]:
    """A disk of this size."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def resize(folder: Path, size: str) -> None:
    """Give the disk another size."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def small_result() -> Reconstruction:
    """Of an attack of seconds, without Ray."""
    client = ClientConfig(batch_size=2, image_size=8)
    update, model, _ = simulate_client(client, 0)
    config = AttackConfig(agents=AgentsConfig(count=2, iterations=4), peeling=PeelingConfig(enabled=False))
    return Coordinator(update, model, config, SerialGroup(config)).run()


def same(left: Reconstruction | None, right: Reconstruction) -> bool:
    return left is not None and torch.equal(left.images, right.images)


def save_round(storage: Storage, index: int) -> None:
    """A round with the states of two seeds."""
    store = CheckpointStore(storage, {"attack": "one"})
    store.claim()
    state = {"images": torch.full((4, 3, 32, 32), float(index))}
    states = {seed: write_state(storage, state_name(index, seed, "w"), state, index) for seed in range(2)}
    store.commit(index, states, {"round": index}, {"consensus": state["images"]})


def newest(storage: Storage) -> int:
    found, _ = CheckpointStore(storage, {"attack": "one"}).latest()
    return -1 if found is None else int(found.tensors["consensus"][0, 0, 0, 0])


def save_on_full_disk(kilobytes: int, found: Found) -> None:
    """The round before stays whole, and the next one is saved once there is room."""
    with disk(64 * 1024) as out:
        storage = Storage(out)
        save_round(storage, 0)
        resize(out, f"{taken(out) + kilobytes}k")
        try:
            save_round(storage, 1)
            found.lost += newest(storage) != 1
        except Refusal:
            found.full += 1
            found.lost += newest(storage) != 0
            resize(out, _ROOM)
            save_round(storage, 2)
            found.lost += newest(storage) != 2


def taken(folder: Path) -> int:
    """Kilobytes on a disk."""
    return int(subprocess.check_output(["du", "-sk", str(folder)]).split()[0])


def replace_on_full_disk(old: Reconstruction, new: Reconstruction, kilobytes: int, found: Found) -> None:
    """The old result or the new one is there at every moment."""
    with disk(64 * 1024) as out:
        storage = Storage(out)
        write_result(storage, old)
        resize(out, f"{taken(out) + kilobytes}k")
        try:
            write_result(storage, new)
            found.lost += not same(read_result(storage), new)
        except Refusal:
            found.full += 1
            found.lost += not same(read_result(storage), old)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--levels", type=int, default=40)
    given = parser.parse_args()
    old = small_result()
    new = replace(old, images=1 - old.images)
    with disk(64 * 1024) as out:
        save_round(Storage(out), 0)
        round_takes = taken(out)
    with disk(64 * 1024) as out:
        write_result(Storage(out), old)
        result_takes = taken(out)
    rows = [Found("the next round's checkpoint"), Found("a result that replaces one")]
    for level in range(given.levels):
        share = level / (given.levels - 1)
        for row, most in ((rows[0], round_takes), (rows[1], result_takes)):
            row.levels += 1
            try:
                if row is rows[0]:
                    save_on_full_disk(int(share * (most + 8)), row)
                else:
                    replace_on_full_disk(old, new, int(share * (most + 8)), row)
            # Whatever else comes out for want of room is what is looked for.
            except Exception as error:
                row.undocumented.append(f"level {level}: {type(error).__name__}: {str(error)[:200]}")
    print("| disk full at | levels | of them full | lost | undocumented errors |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row.write} | {row.levels} | {row.full} | {row.lost} | {len(row.undocumented)} |")
        print(*row.undocumented[:3], sep="\n", end="\n" if row.undocumented else "")
    RESULTS.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()

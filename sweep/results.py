"""What a cell found, as the page needs it: plain numbers, words and three small pictures, kept in a file of its own."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from ..audit import LabelScores
from ..coordinator import Storage, StorageError
from ..storage.json_file import read_json
from ..storage.schema import misfit

_FILE = "cell.json"
_LARGEST = 16 * 2**20
_RULES = 3
"""Of the verdicts: a cell that was judged by others is not finished."""


class State(StrEnum):
    """How far a cell is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "not run"


@dataclass(frozen=True)
class Worst:
    """The image of a cell that leaked most: pictures as ``data:`` URIs, PSNR in dB."""

    name: str
    original: str
    reconstruction: str
    psnr: float | None
    control: str | None
    """What the strongest control made of it; None where that has no picture."""
    control_name: str
    control_psnr: float | None
    ssim: float | None = None
    control_ssim: float | None = None
    identified: bool | None = None
    """Whether it is recognised in the pool; None without one."""


@dataclass(frozen=True)
class Risk:
    """How one private image fared, and what it weighed in the gradient."""

    name: str
    level: str
    """``leaked``, ``weak``, ``none``, ``unknown`` or ``failed``."""
    lead: float | None
    """PSNR above the strongest control, in dB."""
    loss: float | None
    """At the weights that the client started from, in nats."""
    share: float | None
    """Of the sum of all images' gradient norms."""


@dataclass(frozen=True)
class CellResult:
    """The outcome of one cell. Numbers that a cell does not have are None."""

    state: State
    sentence: str = ""
    """The verdict; for a cell without one, why."""
    images: int = 0
    leaked: int = 0
    weak: int = 0
    """Images that are weakly visible."""
    unknown: int = 0
    """Images of which nothing can be said."""
    iip: float | None = None
    labels: float | None = None
    """Share of the labels that were read off the update, as multisets: the instances. None where they were given."""
    label_scores: LabelScores | None = None
    """Classes, counts and instances; None where labels were given, or an earlier version did not keep these numbers."""
    psnr: float | None = None
    """Mean over the images that are not of one flat colour, in dB."""
    floor: float | None = None
    """Of the constant images, in dB, over the same images."""
    control: float | None = None
    """Mean over the same images of the strongest control's PSNR, in dB."""
    ssim: float | None = None
    bit_exact: int | None = None
    """Images that came back bit for bit; None without ground truth."""
    peeling: str = ""
    """What the gradient determines exactly and where that ends, in one or two sentences; empty where nothing was
    peeled."""
    exact_places: int | None = None
    """Places of the network whose activations the update determines, the images among them; None where nothing was
    peeled, or where none was found and effort set the limit: then there may be some."""
    seconds: float = 0.0
    agents: int = 0
    iterations: int = 0
    problems: tuple[str, ...] = ()
    """What a reader should know, such as a control that could not be run."""
    worst: Worst | None = None
    risks: tuple[Risk, ...] = ()
    """In the order of the private batch."""
    embedding: str = ""
    """Which features IIP compares."""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """Share of the images that leaked; None where the cell has no result."""
        judged = self.images - self.unknown
        return self.leaked / judged if self.state is State.DONE and judged else None


def save_result(storage: Storage, result: CellResult) -> None:
    """Write a cell's result into the cell's folder: with it the cell is finished."""
    storage.write(_FILE, (json.dumps({"rules": _RULES, **asdict(result)}, indent=1, allow_nan=False) + "\n").encode())


def load_result(storage: Storage) -> CellResult | None:
    """The result of a finished cell; None where there is none, or none that can be read."""
    try:
        facts: dict[str, Any] = read_json(storage.read(_FILE, _LARGEST))
        if facts.pop("rules", 1) != _RULES:
            return None
        worst, scores = facts.get("worst"), facts.get("label_scores")
        changes: dict[str, Any] = {
            "state": State(facts["state"]),
            "problems": tuple(facts["problems"]),
            "label_scores": None if scores is None else LabelScores(**scores),
            "worst": None if worst is None else Worst(**worst),
            "risks": tuple(Risk(**risk) for risk in facts["risks"]),
        }
        found = CellResult(**facts | changes)
    except (StorageError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return found if misfit(found, CellResult) is None and _is_closed(found.worst) else None


def _is_closed(worst: Worst | None) -> bool:
    """Whether its pictures are in it: a page asks no other machine for one."""
    pictures = () if worst is None else (worst.original, worst.reconstruction, worst.control or "data:")
    return all(picture.startswith("data:") for picture in pictures)


def forget_result(storage: Storage) -> None:
    """A cell that begins is not finished."""
    storage.remove(_FILE)

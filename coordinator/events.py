"""What can happen in a run, and the line that a person reads of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class EventKind(StrEnum):
    """What happened. Tools may filter by the values, so they stay as they are."""

    SEED_DIVERGED = "seed_diverged"
    SEED_DROPPED = "seed_dropped"
    SEED_JOINED = "seed_joined"
    AGENT_LOST = "agent_lost"
    AGENT_GIVEN_UP = "agent_given_up"
    AGENT_BACK = "agent_back"
    CHECKPOINT_FAILED = "checkpoint_failed"
    CHECKPOINT_SAVED_AGAIN = "checkpoint_saved_again"
    CHECKPOINT_REFUSED = "checkpoint_refused"
    STORAGE_FAILING = "storage_failing"
    STORAGE_WORKING = "storage_working"
    CONSENSUS_LEFT_OUT = "consensus_left_out"
    PAUSED = "paused"
    RESUMED = "resumed"
    COORDINATOR_RESTARTED = "coordinator_restarted"
    FAILED = "failed"
    NODE_DRAINING = "node_draining"
    NOTE = "note"
    """A plain fact. Told again, it is still one fact and is not counted."""


MEANINGS = {
    EventKind.SEED_DIVERGED: "a seed's loss or candidate failed numerically, and the seed began again",
    EventKind.SEED_DROPPED: "a seed failed more often than agents.restarts allows and is out of the run",
    EventKind.SEED_JOINED: "a seed got its first process after the run had begun",
    EventKind.AGENT_LOST: "the process of a seed is gone",
    EventKind.AGENT_GIVEN_UP: "a lost seed was not back in time, so the others go on without it",
    EventKind.AGENT_BACK: "a lost seed has a process again and continues",
    EventKind.CHECKPOINT_FAILED: "a round could not be saved; the last good checkpoint stays",
    EventKind.CHECKPOINT_SAVED_AGAIN: "saving works again after it had failed",
    EventKind.CHECKPOINT_REFUSED: "a torn or foreign checkpoint was passed over",
    EventKind.STORAGE_FAILING: "an operation on the storage has failed for some seconds, and is tried again",
    EventKind.STORAGE_WORKING: "an operation on the storage succeeded after others had failed",
    EventKind.CONSENSUS_LEFT_OUT: "a candidate was kept out of a consensus",
    EventKind.PAUSED: "fewer than agents.minimum agents are present, so the run waits",
    EventKind.RESUMED: "enough agents are present again",
    EventKind.COORDINATOR_RESTARTED: "the coordinator, or the whole run, continues from its last checkpoint",
    EventKind.FAILED: "the run ended with an error",
    EventKind.NODE_DRAINING: "a node will be taken away, so its agents leave it",
    EventKind.NOTE: "a fact about the run that a reader of its result should know",
}
"""What each kind means, as the page of events tells it."""


class Level(StrEnum):
    """How grave an event is, from the least grave on."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


# A longer list of seeds is cut: nobody reads 200 numbers in a sentence.
_MOST_NAMED = 8
# What stands in a text for the seeds that it happened to, and for its last round.
_SEED, _ROUND = "{seed}", "{round}"


@dataclass(frozen=True)
class Event:
    """One thing that happened, with all its repetitions."""

    time: float
    """Unix time at which it happened first."""
    level: Level
    kind: EventKind
    text: str
    """What a person reads; ``{seed}`` stands for the seeds, ``{round}`` for the last round."""
    seeds: tuple[int, ...] = ()
    """The seeds it happened to, in rising order."""
    round: int | None = None
    """The last round in which it happened."""
    count: int = 1
    """How often it happened; once to each of two seeds is twice."""
    first_round: int | None = None
    """The first round in which it happened."""
    last_time: float = 0.0
    """Unix time at which it happened last."""

    @property
    def key(self) -> tuple[EventKind, str]:
        """What stays the same while the event happens again, to other seeds and in other rounds."""
        return self.kind, self.text

    @property
    def message(self) -> str:
        """The line for people: the seeds listed, and how often if that is more than once each."""
        text = self.text if not self.seeds or _SEED in self.text else f"{_SEED}: {self.text}"
        text = text.replace(_SEED, _name_seeds(self.seeds))
        text = text.replace(_ROUND, "?" if self.round is None else str(self.round))
        facts = [f"{self.count} times"] if self.count > max(1, len(self.seeds)) else []
        if self.round is not None and self.first_round is not None:
            if self.first_round != self.round:
                facts.append(f"rounds {self.first_round} to {self.round}")
            elif _ROUND not in self.text:
                facts.append(f"round {self.round}")
        text = text[:1].upper() + text[1:]
        return f"{text} ({', '.join(facts)})" if facts else text

    def to_plain(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self) | {"seeds": list(self.seeds)}


def _name_seeds(seeds: tuple[int, ...]) -> str:
    """Such as "seed 3", "seeds 1, 4 and 7", "seeds 0–5 and 9"."""
    if not seeds:
        return "a seed"
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    names = [
        name for run in runs for name in ([f"{run[0]}–{run[-1]}"] if len(run) > 2 else [str(seed) for seed in run])
    ]
    word = "seed" if len(seeds) == 1 else "seeds"
    if len(names) > _MOST_NAMED:
        return f"{word} {', '.join(names[: _MOST_NAMED - 2])} … ({len(seeds)} seeds)"
    listed = ", ".join(names[:-1])
    return f"{word} {f'{listed} and ' if listed else ''}{names[-1]}"

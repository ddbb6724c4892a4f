"""What the rounds have produced so far; all of it goes into a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from jaxtyping import Int
from torch import Tensor

from ..agents import Account
from ..registration import Consensus
from ..storage.schema import misfit
from ..storage.tensor_file import CheckpointError
from .event_log import EventLog
from .events import EventKind, Level

_Orders = Int[Tensor, "seed batch"]


class _Facts(TypedDict):
    """As ``Progress.facts`` writes them."""

    history: list[dict[str, float]]
    registration: list[dict[str, float]]
    events: dict[str, Any]
    deaths: dict[str, int]
    seconds: float


@dataclass
class Progress:
    """The state of a run between two rounds."""

    next_round: int = 0
    consensus: Consensus | None = None
    permutations: Int[Tensor, "seed batch"] | None = None
    """For each seed, which of its images stands at each place of the consensus."""
    accounts: dict[int, Account] = field(default_factory=dict)
    """The newest of each seed that takes part, by position."""
    history: list[dict[str, float]] = field(default_factory=list)
    registration: list[dict[str, float]] = field(default_factory=list)
    events: EventLog = field(default_factory=EventLog)
    deaths: dict[int, int] = field(default_factory=dict)
    """Processes lost, by position."""
    seconds: float = 0.0

    def computing(self, seconds: float) -> float:
        """Share of a round of this length that the slowest agent spent in optimisation steps."""
        slowest = max((account.seconds for account in self.accounts.values()), default=0.0)
        return min(1.0, slowest / seconds) if seconds > 0 else 0.0

    def facts(self) -> dict[str, Any]:
        """The plain values of a checkpoint; they do not change when the progress does."""
        return {
            "history": list(self.history),
            "registration": list(self.registration),
            "events": self.events.to_plain(),
            "deaths": {str(position): deaths for position, deaths in self.deaths.items()},
            "seconds": self.seconds,
        }

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, as fixed as its facts; empty before there is a consensus."""
        if self.consensus is None or self.permutations is None:
            return {}
        return {
            "images": self.consensus.images,
            "agreement": self.consensus.agreement,
            "rejected": self.consensus.rejected,
            "seeds": torch.tensor(self.consensus.seeds),
            "round": torch.tensor(self.consensus.round),
            "orders": self.permutations.clone(),
        }

    def restore(self, round: int, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Continue after a round whose ``facts`` and ``tensors`` these are.

        Raises:
            CheckpointError: They are not those of a round, though their file is whole.
        """
        try:
            self._restore(round, facts, tensors)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
            raise CheckpointError(
                f"The checkpoint of round {round + 1} is whole but cannot be read ({error!r}); remove its folder to go "
                "on from the one before, or begin anew with restart=true."
            ) from error

    def _restore(self, round: int, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        if wrong := misfit(facts, _Facts, "its progress"):
            raise ValueError(wrong)
        self.next_round = round + 1
        self.history = list(facts["history"])
        self.registration = list(facts["registration"])
        self.events.continue_from(EventLog.from_plain(facts["events"]))
        self.deaths = {int(position): deaths for position, deaths in facts["deaths"].items()}
        self.seconds = float(facts["seconds"])
        if not tensors:
            return
        consensus = Consensus(
            images=tensors["images"],
            agreement=tensors["agreement"],
            seeds=tuple(int(seed) for seed in tensors["seeds"].flatten()),
            round=int(tensors["round"]),
            displacement=None,
            rejected=tensors["rejected"],
            left_out=(),
        )
        orders = tensors["orders"]
        if wrong := misfit(consensus, Consensus, "its consensus") or misfit(orders, _Orders, "its orders"):
            raise ValueError(wrong)
        count, every = len(consensus.images), torch.arange(orders.shape[1])
        if orders.shape[1] != count or not torch.equal(orders.sort(dim=1).values, every.expand_as(orders)):
            raise ValueError(f"its orders are no permutations of {count} images")
        if len(consensus.agreement) != count or consensus.rejected.shape[1] not in (0, count):
            raise ValueError(f"its agreement is not that of {count} images")
        self.permutations, self.consensus = orders, consensus

    def agree(self, consensus: Consensus, permutations: Int[Tensor, "seed batch"], step: int) -> None:
        """Take a consensus, and the permutation of every seed."""
        self.consensus, self.permutations = consensus, permutations
        for one in consensus.left_out:
            kind, text = EventKind.CONSENSUS_LEFT_OUT, f"{{seed}}: {one.reason}"
            self.events.note(kind, text, seeds=(one.seed,), level=Level.WARNING, round=consensus.round)
        self.registration.append(
            {
                "round": consensus.round,
                "step": step,
                "seeds": len(consensus.seeds),
                "rejected": float(consensus.rejected.float().mean()),
                "agreement": float(consensus.agreement.mean()),
            }
        )

    def record(self, round: int, account: Account) -> None:
        """Take an account's losses and failures."""
        for failure in account.failures:
            kind = EventKind.SEED_DROPPED if failure.dropped else EventKind.SEED_DIVERGED
            self.events.note(kind, failure.of("{seed}"), seeds=(account.seed,), level=Level.WARNING, round=round)
        self.history += rows(round, account)


def rows(round: int, account: Account) -> list[dict[str, float]]:
    """An account's losses as rows of the history."""
    facts = {"round": round, "seed": account.seed, "incarnation": account.incarnation}
    rate = steps_per_second(account)
    return [{**facts, **row, "steps_per_second": rate} for row in account.trace]


def steps_per_second(account: Account) -> float:
    """How fast the seed moved since its previous account, while it computed."""
    if not account.trace or account.seconds <= 0:
        return 0.0
    return (account.trace[-1]["step"] - account.trace[0]["step"]) / account.seconds

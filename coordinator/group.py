"""What the coordinator needs of its agents, whatever runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from ..agents import Account, Candidate
from ..registration import Consensus, RegistrationConfig
from ..storage.tensor_file import StateFile
from ..target import Target
from .events import EventKind, Level
from .orders import Order
from .parts import Part
from .phase import Wait


class Listener(Protocol):
    """What a group tells the coordinator while it waits."""

    def idle(self) -> None:
        """Called several times a second while a round runs."""

    def saved(self, round: int, position: int, state: StateFile | str) -> None:
        """A seed's state of a round lies in the storage, or why it does not."""

    def saved_within(self, part: Part, position: int, found: tuple[StateFile, Account] | str | None) -> None:
        """A seed's state in the middle of a round lies in the storage, with what happened to it since the round began;
        or why there is none; None: it has no process now."""

    def note(self, kind: EventKind, text: str, *, seeds: tuple[int, ...] = (), level: Level = Level.INFO) -> None:
        """Something that a person should know; see `EventLog.note`."""

    def waits(self, wait: Wait | None) -> None:
        """The round stands still for want of agents; None: it goes on."""


class CandidatesLostError(RuntimeError):
    """Candidates were lost between the end of a round and their use; their seeds must make the round again."""

    def __init__(self, positions: Sequence[int]) -> None:
        self.positions = tuple(positions)
        super().__init__(f"the candidates at positions {list(positions)} were lost")


class AgentGroup(Protocol):
    """One agent per seed, in the order of the seeds. ``cluster`` implements it with Ray actors."""

    seeds: tuple[int, ...]

    def place(self, listener: Listener) -> None:
        """Begin to place the agents; what they are to know comes with `open`. Does not wait."""

    def open(self, target: Target) -> None:
        """Give the agents what is known about the batch."""

    def present(self) -> frozenset[int]:
        """Positions of the agents that have a process now. Does not wait."""

    def room(self) -> int:
        """For how many agents the cluster has room, as it is now."""

    def put(self, images: Float[Tensor, "batch channel height width"]) -> Any:
        """Make images available to all agents; what comes back goes into a `Leg` or an `Origin`."""

    def run_round(
        self, orders: Mapping[int, Order], enough: Callable[[int, int], bool], give_up: Callable[[float, int], bool]
    ) -> tuple[dict[int, Account], frozenset[int]]:
        """Have the orders carried out; returns when enough agents are done.

        An agent that is lost is waited for, and given its order again when it is back.

        Args:
            orders: By position.
            enough: Whether to return, from the number of agents that are done and of those that take part.
            give_up: Whether to go on without a lost agent, from the seconds since it was lost and how many others there
                are.

        Returns:
            The account of each agent that has one, of what happened since the last call; its images stay behind until
            ``form_consensus`` or ``fetch`` wants them. And the positions of the agents that take part no more.
        """

    def renew(self, position: int, order: Order) -> None:
        """An order that begins later, since a state was saved meanwhile: for a process that is lost on its way."""

    def save_within(self, part: Part) -> None:
        """Have the seeds save where they stand, and tell of each by `Listener.saved_within`; does not wait. Where one
        has no process, only that is told, and nobody saves."""

    def form_consensus(
        self, positions: Sequence[int], labels: Int[Tensor, " batch"], round: int, config: RegistrationConfig
    ) -> tuple[Consensus, Int[Tensor, "seed batch"]]:
        """Register the newest candidates; see ``consensus.form_consensus``.

        Raises:
            CandidatesLostError: Some are gone.
        """

    def fetch(self, positions: Sequence[int]) -> list[Candidate]:
        """The newest candidates.

        Raises:
            CandidatesLostError: Some are gone.
        """

    def await_writes(self, seconds: float) -> None:
        """Hear of states that were saved; returns when there is nothing more to hear of, or after so many seconds."""

    def close(self) -> None:
        """End all agents."""

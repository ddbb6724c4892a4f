"""An agent: one seed that runs rounds, starts again when it fails, and can be saved and restored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..target import Target
from .candidate import Account, Failure
from .config import AgentsConfig
from .inverter import Inverter, never
from .objective import Objective
from .objective_config import ObjectiveConfig
from .outcome import Outcome

_FAILURES = (Outcome.NOT_FINITE, Outcome.DIVERGED)


class Agent:
    """Runs one seed round by round.

    Args:
        target: What is known about the batch.
        objective: Terms and weights.
        config: Steps, optimiser, and how many restarts a seed has.
        seed: Of this agent.
        device: Where to compute.
    """

    def __init__(
        self,
        target: Target,
        objective: ObjectiveConfig,
        config: AgentsConfig,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.seed = seed
        self._config = config
        self._objective = Objective(target, objective, device, config.images_at_once)
        self._inverter = Inverter(self._objective, config, seed)
        self._dropped = False
        # Where the round began: a seed that fails starts again there, also when the round was made in parts.
        self._round_began, self._round_ends = 0, 0

    @property
    def step(self) -> int:
        """Steps made so far, or all of them once the seed is dropped; safe to read from another thread."""
        return self._config.iterations if self._dropped else self._inverter.step

    @property
    def iterations(self) -> int:
        """All steps of the run."""
        return self._config.iterations

    @property
    def finished(self) -> bool:
        """Whether there is no step left to make."""
        return self.step >= self.iterations

    @property
    def messages(self) -> tuple[str, ...]:
        """What a person should know about the descent, such as terms that were skipped."""
        begins = self._inverter.finish_begins
        if not begins:  # none, or the images are known from the start
            return tuple(self._objective.messages)
        finish = (
            f"Peeled layers determine the images: from step {begins} of {self._config.iterations} on the steps are "
            "Gauss-Newton steps, which follow the equations alone (agents.finish)."
        )
        return (*self._objective.messages, finish)

    def join(self, step: int, start: Float[Tensor, "batch channel height width"] | None) -> None:
        """Begin anew in the middle of a run, near what the other seeds have found.

        Args:
            step: Where the others are; the learning rate follows it.
            start: Normalised images that this seed begins near, with noise of its own, or None for ``x ~ N(0, 1)``.
        """
        self._inverter = Inverter(self._objective, self._config, self.seed, step=step, start=start)
        self._dropped = False
        self._round_began = self._round_ends = step

    def run(
        self,
        until_step: int,
        consensus: Float[Tensor, "batch channel height width"] | None = None,
        interrupted: Callable[[], bool] = never,
    ) -> Account:
        """Descend until a step. A seed that fails starts again at this round's first step, from the consensus if there
        is one, with other random numbers and half the learning rate, until its restarts are used up.

        Args:
            until_step: Absolute step.
            consensus: Target of group consistency, normalised, or None.
            interrupted: Asked before each step; True returns at once. The same call again goes on from there, and what
                comes out is what it would have been without the interruption.
        """
        if until_step != self._round_ends:
            self._round_began, self._round_ends = self._inverter.step, until_step
        failures: list[Failure] = []
        while not self._dropped:
            account = self._inverter.run(until_step, consensus, interrupted)
            if account.outcome not in _FAILURES:
                return replace(account, failures=tuple(failures))
            incarnation = self._inverter.incarnation + 1
            failures.append(Failure(account.step, account.outcome, incarnation, self._config.restarts))
            if failures[-1].dropped:
                self._dropped = True
                break
            self._inverter = Inverter(
                self._objective, self._config, self.seed, incarnation, step=self._round_began, start=consensus
            )
        return replace(self.account(), failures=tuple(failures))

    @property
    def images(self) -> Float[Tensor, "batch channel height width"]:
        """The seed's batch as it stands, normalised, on the CPU."""
        return self._inverter.images

    def account(self) -> Account:
        """Where the seed stands, without losses; see `run`."""
        inverter = self._inverter
        finished = inverter.step >= self._config.iterations
        outcome = Outcome.DROPPED if self._dropped else Outcome.FINISHED if finished else Outcome.RUNNING
        return Account(self.seed, inverter.incarnation, inverter.step, {}, outcome, inverter.labels)

    def state(self) -> dict[str, Tensor]:
        """Everything the next round depends on, as tensors."""
        facts = [int(self._dropped), self._round_began, self._round_ends]
        return self._inverter.state() | {"round": torch.tensor(facts, dtype=torch.int64)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a ``state()`` of the same seed.

        Raises:
            ValueError: It is the state of another seed, or of other images; nothing has changed then.
        """
        if "round" not in state:
            raise ValueError("this is no state of an agent: it has no round.")
        dropped, began, ends = (int(value) for value in state["round"])
        self._inverter.restore(state)
        self._dropped, self._round_began, self._round_ends = bool(dropped), began, ends

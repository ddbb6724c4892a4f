"""One seed descends the objective. No Ray, no files: tensors and numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .adam import Adam
from .candidate import Account
from .config import AgentsConfig, OptimiserName
from .gauss_newton import GaussNewton
from .gauss_newton_state import STATE_NAMES, GaussNewtonState
from .lbfgs import Lbfgs
from .loss_watch import LossWatch
from .objective import Objective
from .optimiser import Optimiser, require_shape
from .outcome import Outcome
from .parametrisation import parametrisation_of
from .schedule import descent_steps, learning_rate

# About so many points of each loss curve are kept over a run.
_TRACE_POINTS = 200
# Steps that a second descent must have before it, or it only stirs up what was found.
_LEAST_AGAIN = 100
# What a state holds beside the variables and what the optimiser knows; "generator" is the state of its random numbers.
_STATE = {"generator", "counters", "losses"}


_OPTIMISERS: dict[OptimiserName, Callable[[Tensor], Optimiser]] = {
    OptimiserName.ADAM: Adam,
    OptimiserName.LBFGS: Lbfgs,
}


def never() -> bool:
    """No interruption."""
    return False


def _anywhere(variables: Tensor) -> None:
    """Allow all variables."""


class Inverter:
    """Descends the pixels of one candidate batch, or the latents that a generator makes it of.

    Args:
        objective: What to descend.
        config: Steps and optimiser.
        seed: Of this agent.
        incarnation: How often this seed was restarted; each has other random numbers and half the learning rate.
        step: Where in the schedule to begin; a restarted seed joins the others' step.
        start: Normalised pixels to begin near (a consensus); None to begin where the target says, or else at random;
            see `parametrisation`.
    """

    def __init__(
        self,
        objective: Objective,
        config: AgentsConfig,
        seed: int,
        incarnation: int = 0,
        step: int = 0,
        start: Float[Tensor, "batch channel height width"] | None = None,
    ) -> None:
        self.seed, self.incarnation, self.step = seed, incarnation, step
        self._objective, self._config = objective, config
        # Drawn on the CPU, so that a seed means the same batch on every device.
        self._random = torch.Generator().manual_seed((seed * 1_000_003 + incarnation) % 2**63)
        shape = (objective.update.image_count, *objective.update.image_shape)
        if start is not None:
            require_shape("the start", start, shape)
        self._parametrisation = parametrisation_of(objective)
        known = objective.start
        if start is not None or known is None:
            begin = self._parametrisation.begin(self._random, start, config.learning_rate)
        else:
            begin = self._parametrisation.begin(self._random, known.images, known.spread(seed, incarnation))
        self._variables = begin.float().requires_grad_()
        self._optimiser = self._new_optimiser()
        finishes = objective.determined and config.optimiser is OptimiserName.ADAM
        until = descent_steps(config.iterations, config.finish) if finishes else config.iterations
        if finishes and config.finish > 0 and known is not None and known.is_known:
            until = 0  # a descent would only lead away from the images
        # The descent that is going on, or the last one: its first step and its end.
        self._descent = self._first_descent = (0, until)
        self._finish: GaussNewton | None = None
        self._watch = LossWatch()

    @property
    def images(self) -> Float[Tensor, "batch channel height width"]:
        """The candidate as it stands, normalised, on the CPU."""
        with torch.no_grad():
            return self._parametrisation.images(self._variables).detach().cpu().clone()

    @property
    def finish_begins(self) -> int | None:
        """The step from which on Gauss-Newton steps are made, unless they stall; None: there are none."""
        end = self._first_descent[1]
        return end if end < self._config.iterations else None

    @property
    def labels(self) -> Float[Tensor, "batch classes"] | None:
        """The probability of each class, on the CPU; None where the labels are known."""
        with torch.no_grad():
            labels = self._parametrisation.labels(self._variables)
        return None if labels is None else labels.cpu().clone()

    @property
    def _by_sign(self) -> bool:
        """Whether only the sign of the derivative counts."""
        if self._config.sign is not None:
            return self._config.sign
        # What peeling leaves is smooth enough for steps of Adam's own size; plain gradient matching jumps.
        return self._config.optimiser is not OptimiserName.LBFGS and not self._objective.peeled

    @property
    def _peak(self) -> float:
        """The largest learning rate."""
        return self._config.learning_rate * 0.5**self.incarnation

    def run(
        self,
        until_step: int,
        consensus: Float[Tensor, "batch channel height width"] | None,
        interrupted: Callable[[], bool] = never,
    ) -> Account:
        """Descend until a step and say how it went; a seed that fails stops early with its outcome.

        Args:
            until_step: Absolute step, at most ``agents.iterations``.
            consensus: Target of group consistency, normalised, or None.
            interrupted: Asked before each step; True ends the descent there, from where it can go on unchanged.
        """
        target = consensus.to(self._objective.device) if consensus is not None else None
        every = max(1, self._config.iterations // _TRACE_POINTS)
        trace: list[dict[str, float]] = []
        outcome = Outcome.RUNNING
        began = time.perf_counter()
        while self.step < until_step and not interrupted():
            due = (self.step + 1) % every == 0 or self.step + 1 == until_step
            losses = self._step(target) if self.step < self._descent[1] else self._finish_step(target, due)
            if due:
                row = {name: float(value) for name, value in losses.items()}
                outcome = self._outcome(row)
                if outcome is not Outcome.RUNNING:
                    break
                trace.append({"step": float(self.step), **row})
        if outcome is Outcome.RUNNING and self.step >= self._config.iterations:
            outcome = Outcome.FINISHED
        return Account(
            seed=self.seed,
            incarnation=self.incarnation,
            step=self.step,
            losses={name: value for name, value in trace[-1].items() if name != "step"} if trace else {},
            outcome=outcome,
            seconds=time.perf_counter() - began,
            labels=self.labels,
            trace=tuple(trace),
        )

    def _step(self, consensus: Tensor | None) -> dict[str, Tensor]:
        config = self._config
        images, labels = self._parametrisation.images(self._variables), self._parametrisation.labels(self._variables)
        begin, end = self._descent
        progress = (self.step - begin) / (end - begin)
        terms = self._objective.terms(images, consensus, labels, progress)
        derivative = self._derivative(terms["total"])
        rate = self._rate()
        # The sign of what is not a number would be 0 and hide it; the sum keeps it.
        step = derivative.sign() + 0 * derivative if self._by_sign else derivative
        self._optimiser.step(self._variables, step, rate)
        with torch.no_grad():
            if config.noise > 0:
                noise = torch.randn(self._variables.shape, generator=self._random)
                self._variables += rate * config.noise * noise.to(self._variables.device)
            if config.box:
                self._parametrisation.confine(self._variables)
        self.step += 1
        return {name: value.detach() for name, value in terms.items()}

    def _finish_step(self, consensus: Tensor | None, due: bool) -> dict[str, Tensor]:
        """A step that follows the equations alone: no prior, no consensus. The terms only where they are asked for."""
        finish = self._finish = self._finish or self._new_finish()
        finish.step(self._variables, last=self.step + 1 == self._config.iterations)
        self.step += 1
        if finish.stalled and self._config.iterations - self.step >= _LEAST_AGAIN:
            self._descend_again(self.step)
        if not due:
            return {}
        terms = self._objective.terms(self._parametrisation.images(self._variables), consensus, None, 1.0)
        return {name: value.detach() for name, value in terms.items()}

    def _descend_again(self, begin: int) -> None:
        """Spend the steps that are left on a descent with priors, from where the variables are."""
        self._descent = begin, self._config.iterations
        self._finish, self._optimiser = None, self._new_optimiser()

    def _new_optimiser(self) -> Optimiser:
        return _OPTIMISERS[self._config.optimiser](self._variables.detach())

    def _new_finish(self, state: GaussNewtonState | None = None) -> GaussNewton:
        confine = self._parametrisation.confine if self._config.box else _anywhere
        return GaussNewton(self._residual, confine, self._variables.detach(), state)

    def _residual(self, variables: Tensor) -> Tensor:
        return self._objective.residual(self._parametrisation.images(variables))

    def _derivative(self, total: Tensor) -> Tensor:
        if not total.requires_grad:  # no term at all: the control of a generator, whose random images stay
            return torch.zeros_like(self._variables)
        return torch.autograd.grad(total, self._variables)[0]

    def _rate(self) -> float:
        config = self._config
        if config.optimiser is OptimiserName.LBFGS:
            return self._peak
        begin, end = self._descent
        return learning_rate(self.step - begin, steps=end - begin, warmup=config.warmup, peak=self._peak)

    def _outcome(self, losses: dict[str, float]) -> Outcome:
        if not all(map(math.isfinite, losses.values())) or not bool(torch.isfinite(self._variables).all()):
            return Outcome.NOT_FINITE
        loss = losses.get("gradient", losses.get("activation"))
        if loss is None:
            return Outcome.RUNNING
        return Outcome.DIVERGED if self._watch.diverges(loss) else Outcome.RUNNING

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on, as tensors (the content of a checkpoint)."""
        return {
            self._parametrisation.name: self._variables.detach().cpu().clone(),
            **self._optimiser.state(),
            **(self._finish.state() if self._finish is not None else {}),
            **({"again": torch.tensor([self._descent[0]])} if self._descent != self._first_descent else {}),
            "generator": self._random.get_state(),
            "counters": torch.tensor([self.seed, self.incarnation, self.step, self._optimiser.steps]),
            "losses": self._watch.state(),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a ``state()`` of the same seed, as if nothing had happened in between.

        Raises:
            ValueError: It is the state of another seed, or of other images; nothing has changed then.
        """
        name = self._parametrisation.name
        # A state of the descent, or of a seed that has just joined, holds nothing of the end.
        finishing = bool(STATE_NAMES & state.keys())
        needed = _STATE | self._optimiser.names | {name} | (STATE_NAMES if finishing else set())
        missing = needed - state.keys()
        if missing:
            raise ValueError(f"this is no state of a seed: it has no {', '.join(sorted(missing))}.")
        require_shape(f"this state's {name}", state[name], self._variables.shape)
        self._optimiser.require_fit(state)
        finish = self._new_finish(GaussNewtonState.read(state, self._variables.detach())) if finishing else None
        again = self._again(state)
        require_shape("this state's generator", state["generator"], self._random.get_state().shape)
        seed, incarnation, step, steps = (int(value) for value in state["counters"])
        if seed != self.seed:
            raise ValueError(f"this state belongs to seed {seed}, not to seed {self.seed}.")
        require_shape("this state's losses", state["losses"], (2,))
        self._random.set_state(state["generator"])
        self._watch.restore(state["losses"])
        self.incarnation, self.step = incarnation, step
        with torch.no_grad():
            self._variables.copy_(state[name])
        self._optimiser.restore(state, steps)
        self._descent, self._finish = again, finish

    def _again(self, state: dict[str, Tensor]) -> tuple[int, int]:
        """The descent that a state belongs to."""
        if "again" not in state:
            return self._first_descent
        require_shape("this state's again", state["again"], (1,))
        begin = int(state["again"])
        if not 0 < begin < self._config.iterations:
            raise ValueError(
                f"this state's second descent begins at step {begin}, not between 0 and {self._config.iterations}."
            )
        return begin, self._config.iterations

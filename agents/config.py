"""Settings of the agents that minimise the objective."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..refusal import Checked


class OptimiserName(StrEnum):
    """``adam``; ``lbfgs``: quasi-Newton steps of constant length, as in Deep Leakage from Gradients."""

    ADAM = "adam"
    LBFGS = "lbfgs"


# Stands in a preset for a generator that the user must name.
REQUIRED = "?"


@dataclass(frozen=True)
class AgentsConfig(Checked):
    """How many seeds run, on what, and how each one descends."""

    count: int = 4
    """Agents; each is one random seed in a process of its own."""
    iterations: int = 1000
    """Optimisation steps of each agent."""
    minimum: int = 1
    """Agents without which the run pauses; it starts with as many as find a place, the others join later."""
    patience: float = 60.0
    """Seconds that a lost agent is waited for; then the others go on, and it joins again when it is back."""
    gpus: float | None = None
    """GPUs of each agent (0.25: four agents share one; 0: run on CPUs; none: 1 where the cluster has GPUs)."""
    cpus: float = 0.0
    """CPUs reserved for each agent; 0 shares the machine's CPUs evenly."""
    threads: int = 0
    """Compute threads of each agent; 0 takes its share of the CPUs. Bit-equal runs need the same number."""
    images_at_once: int = 0
    """Images whose graph an agent holds at once; 0: the whole batch. Fewer take less memory and up to a fifth more
    time, and give the same to rounding. The coordinator judges at the end with as many, and two of 224 px at most."""
    generator: str | None = None
    """Your own image generator, module:callable: its latents are descended instead of pixels; see docs/attacks.md."""
    generator_weights: str | None = None
    """File of the generator's weights (.safetensors, .pt); none: the callable sees to them itself."""
    optimiser: OptimiserName = OptimiserName.ADAM
    """adam, or lbfgs (then sign, box and noise must be off)."""
    finish: float = 0.7
    """Share of the steps, the last, that are Gauss-Newton steps where peeled layers determine the images; 0: none."""
    learning_rate: float = 0.1
    """Adam's step size after warm-up, in normalised pixels (or latents); with lbfgs the share of each full step."""
    warmup: int = 50
    """Steps over which the learning rate rises linearly to its full value."""
    sign: bool | None = None
    """Descend along the sign of the derivative instead of the derivative; none: only where no layer was peeled."""
    box: bool = True
    """Keep pixels within [0, 1] after each step (those of a generator are there anyway)."""
    noise: float = 0.0
    """Noise on the pixels (or latents) after each step, as a multiple of the current learning rate (the paper: 0.2)."""
    restarts: int = 2
    """How often one seed may start again after it diverged, before it is dropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "optimiser", OptimiserName(self.optimiser))

    def problems(self) -> list[str]:
        """Every value that cannot be carried out, one sentence each."""
        found = []
        for name in ("count", "iterations", "minimum"):
            if getattr(self, name) < 1:
                found.append(f"agents.{name}={getattr(self, name)}: give a whole number of at least 1.")
        if self.minimum > max(self.count, 1):
            found.append(f"agents.minimum={self.minimum} is more than agents.count={self.count}: give at most that.")
        for name in ("gpus", "cpus", "threads", "images_at_once", "warmup", "noise", "restarts", "patience"):
            if not 0 <= (getattr(self, name) or 0) < float("inf"):
                found.append(f"agents.{name}={getattr(self, name)}: give a number that is not negative.")
        if self.gpus is not None and self.gpus > 1 and self.gpus % 1:
            found.append(f"agents.gpus={self.gpus}: give a share of one GPU, or a whole number of them.")
        if not 0 <= self.finish < 1:
            found.append(f"agents.finish={self.finish}: give a share of the steps, at least 0 and below 1.")
        if not 0 < self.learning_rate < float("inf"):
            found.append(f"agents.learning_rate={self.learning_rate}: give a number above 0.")
        return found + self._optimiser_problems() + self._generator_problems()

    def _optimiser_problems(self) -> list[str]:
        if self.optimiser not in list(OptimiserName):
            return [f"agents.optimiser={self.optimiser}: give one of {', '.join(OptimiserName)}."]
        if self.optimiser == OptimiserName.LBFGS and (self.sign or self.box or self.noise):
            return [
                "agents.optimiser=lbfgs learns from how the derivative changes from step to step: give "
                "agents.sign=false agents.box=false agents.noise=0 with it."
            ]
        return []

    def _generator_problems(self) -> list[str]:
        if self.generator == REQUIRED:
            return [
                "agents.generator is missing: this preset projects onto a generator of yours, so name what builds it, "
                "agents.generator=module:callable (docs/attacks.md tells what it must do)."
            ]
        if self.generator is not None and not all(self.generator.partition(":")):
            return [f"agents.generator={self.generator}: give module:callable."]
        if self.generator_weights is not None and self.generator is None:
            return [
                f"agents.generator_weights={self.generator_weights} are the weights of no generator: give "
                "agents.generator=module:callable too."
            ]
        return []

"""Settings of the objective and of the agents that minimise it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class GradientLoss(StrEnum):
    """How the distance between two gradients is measured; see ``gradient_losses.py`` for the equations."""

    LAYER_L2 = "layer_l2"
    RELATIVE_L2 = "relative_l2"
    SQUARED_L2 = "squared_l2"
    COSINE = "cosine"


class Form(StrEnum):
    """``paper``: every prior literally as in Yin et al. 2021. ``scale_free``: means and ratios, which carry over."""

    PAPER = "paper"
    SCALE_FREE = "scale_free"


class GradientScale(StrEnum):
    """``linear``: the gradient loss as it is. ``log``: its logarithm; priors weigh less as the match improves."""

    LINEAR = "linear"
    LOG = "log"


class TotalVariation(StrEnum):
    """``colour``: isotropic, coupled over channels. ``anisotropic``: the sum of absolute differences."""

    COLOUR = "colour"
    ANISOTROPIC = "anisotropic"


@dataclass(frozen=True)
class ObjectiveConfig:
    """What a candidate batch is scored by. Weights are non-negative; 0 switches a term off."""

    form: Form = Form.SCALE_FREE
    """scale_free or paper: how the priors are normalised."""
    gradient_loss: GradientLoss = GradientLoss.RELATIVE_L2
    """relative_l2, layer_l2, squared_l2 or cosine."""
    gradient_scale: GradientScale = GradientScale.LINEAR
    """linear or log: the scale on which the gradient loss enters the objective."""
    gradient_weight: float = 1.0
    """Weight of the gradient loss; 0 gives the no-gradient control."""
    activation_weight: float = 1.0
    """Weight of the distance to the activations that layer peeling recovered (none without peeling)."""
    total_variation: TotalVariation = TotalVariation.COLOUR
    """colour or anisotropic."""
    total_variation_weight: float = 0.2
    """Weight of total variation."""
    l2_weight: float = 0.0
    """Weight of the squared magnitude of the normalised pixels."""
    batch_norm_weight: float = 0.01
    """Weight of the batch-norm statistics; skipped, with a message, where the running statistics were never updated."""
    group_weight: float = 0.01
    """Weight of the distance to the consensus of all seeds."""
    adaptive: bool = True
    """Allow for the defence that the update shows or the client states; without one nothing changes."""

    def __post_init__(self) -> None:
        kinds = {
            "form": Form,
            "gradient_loss": GradientLoss,
            "gradient_scale": GradientScale,
            "total_variation": TotalVariation,
        }
        for name, kind in kinds.items():
            value = getattr(self, name)
            if value not in list(kind):
                raise ValueError(f"objective.{name}={value}: give one of {', '.join(kind)}.")
            object.__setattr__(self, name, kind(value))  # a plain word means the same as the member of that value
        for name in (
            "gradient_weight",
            "activation_weight",
            "total_variation_weight",
            "l2_weight",
            "batch_norm_weight",
            "group_weight",
        ):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"objective.{name}={value}: give a finite number that is not negative.")
        if self.gradient_weight == self.total_variation_weight == self.l2_weight == self.batch_norm_weight == 0:
            raise ValueError("every weight of the objective is 0: give at least one of them a positive number.")


@dataclass(frozen=True)
class AgentsConfig:
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
    learning_rate: float = 0.1
    """Adam's step size after warm-up, in normalised pixels."""
    warmup: int = 50
    """Steps over which the learning rate rises linearly to its full value."""
    sign: bool = True
    """Descend along the sign of the derivative instead of the derivative."""
    box: bool = True
    """Keep pixels within [0, 1] after each step."""
    noise: float = 0.0
    """Pixel noise after each step, as a multiple of the current learning rate (the paper: 0.2)."""
    restarts: int = 2
    """How often one seed may start again after it diverged, before it is dropped."""

    def __post_init__(self) -> None:
        for name in ("count", "iterations", "minimum"):
            if getattr(self, name) < 1:
                raise ValueError(f"agents.{name}={getattr(self, name)}: give a whole number of at least 1.")
        if self.minimum > self.count:
            raise ValueError(
                f"agents.minimum={self.minimum} is more than agents.count={self.count}: give at most that."
            )
        for name in ("gpus", "cpus", "threads", "warmup", "noise", "restarts", "patience"):
            if not 0 <= (getattr(self, name) or 0) < float("inf"):
                raise ValueError(f"agents.{name}={getattr(self, name)}: give a number that is not negative.")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"agents.learning_rate={self.learning_rate}: give a number above 0.")

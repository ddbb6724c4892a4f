"""One seed, one batch, one optimiser: the objective, the Inverter that descends it, and the Agent that runs rounds."""

from .agent import Agent
from .candidate import Account, Candidate, Failure, Standing
from .config import AgentsConfig, OptimiserName
from .generator import load_generator
from .in_parts import judged_at_once
from .inverter import Inverter
from .objective import Objective
from .objective_config import Form, GradientLoss, ObjectiveConfig, TotalVariation
from .outcome import Outcome
from .schedule import learning_rate

__all__ = [
    "Account",
    "Agent",
    "AgentsConfig",
    "Candidate",
    "Failure",
    "Form",
    "GradientLoss",
    "Inverter",
    "Objective",
    "ObjectiveConfig",
    "OptimiserName",
    "Outcome",
    "Standing",
    "TotalVariation",
    "judged_at_once",
    "learning_rate",
    "load_generator",
]
